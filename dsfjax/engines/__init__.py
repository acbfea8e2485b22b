"""Floor 2: engines that run a `System`, and `explain`, which says what they do."""

from dsfjax.engines.attention import log_normalizer as log_normalizer
from dsfjax.engines.explain import Explanation as Explanation
from dsfjax.engines.explain import explain as explain
from dsfjax.engines.materialized import materialize as materialize
from dsfjax.engines.scan import scan as scan
from dsfjax.engines.scan import step as step
from dsfjax.engines.summary import Summary as Summary
from dsfjax.engines.summary import combine as combine
from dsfjax.engines.summary import scan_shards as scan_shards
from dsfjax.engines.summary import summarize as summarize
