"""logistic."""
from sims.reproduce.study import Settings, Study
def study(settings: Settings) -> Study:
    raise NotImplementedError
