"""A Dask scheduler and its workers on this machine, each a process of its own that can be killed."""

import contextlib
import os
import re
import subprocess
import sys


class Cluster:
    """``address`` of the scheduler; ``scheduler`` and ``workers`` are its processes."""

    def __init__(self, workers, **environment):
        self.environment = {**os.environ, "PYTHONUNBUFFERED": "1", **environment}
        self.processes = []
        try:
            self._start_all(workers)
        except BaseException:
            self.close()
            raise

    def _start_all(self, workers):
        self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
        self.address = self._said(self.scheduler, r"Scheduler at:\s+(tcp://\S+)")
        # Without nannies, which would start another worker where one was killed.
        # They do not outlive the scheduler, should these tests be killed.
        options = ("--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1", "--death-timeout", "10")
        self.workers = [self._start("worker", self.address, *options, "--name", f"w{i}") for i in range(workers)]
        for worker in self.workers:
            self._said(worker, "Registered to:")

    def _start(self, *arguments):
        command = [sys.executable, "-m", "dask", *arguments]
        self.processes.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=self.environment))
        return self.processes[-1]

    def _said(self, process, pattern):
        seen = []
        for line in process.stderr:
            seen.append(line)
            if match := re.search(pattern, line):
                return match[match.re.groups]
        raise AssertionError(f"{process.args} ended and never said {pattern}: {''.join(seen)}")

    def close(self):
        for process in self.processes:
            process.kill()
            process.communicate()


@contextlib.contextmanager
def cluster(workers=2, **environment):
    """Start a cluster and end all of its processes afterwards."""
    running = Cluster(workers, **environment)
    try:
        yield running
    finally:
        running.close()
