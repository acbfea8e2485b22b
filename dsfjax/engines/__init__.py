"""Floor 2: engines that run a `System`, the dispatcher, and `explain`, which says what they do."""

from dsfjax.engines.associative import Associative as Associative
from dsfjax.engines.attention import log_normalizer as log_normalizer
from dsfjax.engines.checkpointed import Checkpointed as Checkpointed
from dsfjax.engines.chunked import Chunked as Chunked
from dsfjax.engines.dispatch import ENGINES as ENGINES
from dsfjax.engines.dispatch import Method as Method
from dsfjax.engines.dispatch import methods as methods
from dsfjax.engines.dispatch import select as select
from dsfjax.engines.engine import Cost as Cost
from dsfjax.engines.engine import Engine as Engine
from dsfjax.engines.explain import Explanation as Explanation
from dsfjax.engines.explain import explain as explain
from dsfjax.engines.materialized import Materialized as Materialized
from dsfjax.engines.materialized import materialize as materialize
from dsfjax.engines.recurrence import Recurrence as Recurrence
from dsfjax.engines.recurrence import by_steps as by_steps
from dsfjax.engines.scan import scan as scan
from dsfjax.engines.scan import step as step
from dsfjax.engines.sequential import Sequential as Sequential
from dsfjax.engines.sequential import advance as advance
from dsfjax.engines.shards import WHOLE as WHOLE
from dsfjax.engines.shards import Shards as Shards
from dsfjax.engines.shards import scan_shards as scan_shards
from dsfjax.engines.summary import Summary as Summary
from dsfjax.engines.summary import combine as combine
from dsfjax.engines.summary import summarize as summarize
