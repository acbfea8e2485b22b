"""Cases of the benchmark at sizes for tests."""

from dsfjax.bench.case import Case, Layer, cases


def small(name: str, length: int = 64) -> Case | Layer:
    """The case of that name with two sequences; state and channels small where they may be."""
    case = next(case for case in cases() if case.name == name)
    sizes = case.sizes._replace(batch=2, length=length)
    if isinstance(case, Layer):
        return case._replace(
            sizes=sizes,
            options=case.options
            | {"d_model": 16, "d_state": 4}
            | ({"headdim": 8} if "headdim" in case.options else {}),
        )
    # Attention needs keys and values of one width.
    most = (2, 4, 4) if name == "softmax" else (2, 4, 8)
    heads, n, p = map(min, sizes.state_shape, most)
    return case._replace(sizes=sizes._replace(heads=heads, n=n, p=p))
