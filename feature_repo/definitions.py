"""Every Feast object, each under a module-level name, as `feast apply` wants it.

The objects follow the catalogue: a view that is added there is served here, models' embeddings beside them. Keep it the
only file that Feast reads; definitions that import each other would be registered twice.
"""

from feature_repo.objects import build
from graph_features.catalog import catalog

globals().update(build(catalog().stored))
