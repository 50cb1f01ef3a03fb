"""Every byte is counted once, in its direction, and arrives as it was."""

import socket
import threading

from sims.counting_proxy import counting


def test_bytes_are_counted_by_direction_and_arrive():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer_twice():
            near, _ = listener.accept()
            with near:
                said = b""
                while piece := near.recv(70_000):
                    said += piece
                near.sendall(said + said)

        server = threading.Thread(target=answer_twice)
        server.start()
        with counting(listener.getsockname()[1]) as proxy:
            with socket.create_connection(("127.0.0.1", proxy.port)) as client:
                client.sendall(bytes(range(256)) * 1000)
                client.shutdown(socket.SHUT_WR)
                heard = b""
                while piece := client.recv(70_000):
                    heard += piece
            server.join()
            assert heard == bytes(range(256)) * 2000
            assert (proxy.sent, proxy.received) == (256_000, 512_000)


def test_a_server_that_is_away_for_a_while_is_found_again():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with counting(port) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.port)) as client:
            assert client.recv(1) == b""
        with (
            socket.create_server(("127.0.0.1", port)) as listener,
            socket.create_connection(("127.0.0.1", proxy.port)) as client,
        ):
            client.settimeout(20)
            listener.settimeout(20)
            near, _ = listener.accept()
            with near:
                near.sendall(b"x")
                assert client.recv(1) == b"x"
