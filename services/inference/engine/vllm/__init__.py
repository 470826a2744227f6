"""The engine in front of vLLM servers: versions are LoRA adapters that are loaded into running servers.

`engine.py` implements the port and owns a thread with an event loop, in which everything else runs. From the outside
in: `generation.py` follows one request, `replica_set.py` finds the servers, watches them and routes, `replica.py` keeps
one server's adapters as they must be, `server.py` makes the HTTP calls. `completions_api.py` has vLLM's formats,
`adapter_check.py` and `adapter_folder.py` the adapters' files. `docs/decisions/serving-engines.md` has the reasons.
"""
