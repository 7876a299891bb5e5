import os

# Hypothesis would import trio, which no test uses.
os.environ["HYPOTHESIS_NO_PLUGINS"] = "1"
