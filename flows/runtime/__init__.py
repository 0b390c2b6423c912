"""Set-up of the process, servers, workers, dispatch to machines, and the doctor."""
