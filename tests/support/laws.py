"""How Hypothesis tries the laws, in whatever process."""

from hypothesis import HealthCheck, settings

# A slow machine makes no test red, and a test tries the same at each run.
LAWS = settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
