"""The server: learns tasks from a handful of pictures and answers with them, over gRPC.

    cli          the command line, signals, exit codes
    config       what the command line says, checked once
    meta_file    the meta-model's file, read
    application  one server from bind to drain: the parts below, health, reflection
    service      the contract's calls; thin
    codec        the contract's messages  <->  values of the core
    support      a support set, in one message or in pieces, to prepared pixels
    options      how a request wants its task to be learnt, within the server's limits
    images       the contract's images    ->   prepared pixels
    status       errors -> gRPC status; ``errors`` draws the tree
    gate         which calls may come in: starting, open, draining
    streams      calls that last: threads of their own, and how many there may be
    learning     from a request to a kept task; ``keys`` makes ids of idempotency keys, ``keeping``
                 puts what was learnt into the store
    aliases      names that callers give to tasks
    job          one adaptation on its way; ``ledger`` remembers them
    jobs         adaptations: a bounded queue in front of worker processes
    worker       one worker process, seen from the server; ``worker_main`` is what runs in it,
                 ``work`` what passes between the two
    store        learnt tasks, kept: ``record`` says in what, ``index_sqlite`` and ``weights`` keep it in a folder
                 (``local_store``), ``index_objects`` under a URL (``objects``); ``housekeeping`` looks after it
    engine       networks of the tasks that were asked last: ``networks`` loads a ``network`` for the compiled engine
                 (``programs``, of ``compiling`` and ``planning``) or for ONNX Runtime (``sessions``, with graphs of
                 ``widening`` and ``blocks``; ``task_graph``); ``batching`` runs concurrent calls together
    processors   which processors threads run on (``placing``, ``truce``); ``polling`` who reads what callers send

Adaptation runs in a process of its own, not in a thread: it computes for seconds, and between its
kernels it holds the interpreter lock, under which every other answer would wait.
"""
