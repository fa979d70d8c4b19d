"""Running claims into a folder, here, in several processes or over a cluster, so that nothing complete is lost."""

from lowdyn.runner.folder import Folder, FolderError, RunStopped
from lowdyn.runner.pools import ClusterError, DaskCluster, Pool, Processes
from lowdyn.runner.reproduction import Reproduction

__all__ = [
    "ClusterError",
    "DaskCluster",
    "Folder",
    "FolderError",
    "Pool",
    "Processes",
    "Reproduction",
    "RunStopped",
]
