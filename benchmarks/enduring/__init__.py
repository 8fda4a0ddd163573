"""What `endurance.py`, `load.py` and `kills.py` stand on: real servers on loopback, used for long or killed.

    subjects       a small meta-model
    patterns       drawn classes whose right answer is certain
    process        a server process: its workers, their memory, its end by SIGTERM or kill -9
    load_client    one process of many clients under load
    kill_client    one client that is killed, or whose server is
    report         what was found, as JSON and as a Markdown page

They know the client's and the protocols' words, and nothing of the server's inside.
"""
