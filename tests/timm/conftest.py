from timm_fixtures import *  # noqa: F403
