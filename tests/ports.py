"""Ports for servers that tests start later, in processes of their own."""

import random
import socket


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nothing uses.

    They lie below 32768, where Linux begins the range from which it takes ports for outgoing
    connections: a port of that range, free now, is often taken when its server starts.
    """
    ports: list[int] = []
    for port in random.SystemRandom().sample(range(20000, 32000), 12000):
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        ports.append(port)
        if len(ports) == count:
            return ports
    raise RuntimeError(f"fewer than {count} free ports between 20000 and 32000")
