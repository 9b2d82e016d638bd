from fastreid_fixtures import *  # noqa: F403
