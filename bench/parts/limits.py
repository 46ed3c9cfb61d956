"""What this machine can do at most."""
import os
import socket
import threading
import time

from report import Row


def measure(bench):
    bench.limits = bench.engine("limits")
    bench.limits["loopback_gb_per_second"] = loopback()
    bench.limits["syncs_per_second"] = syncs(bench.scratch)
    bench.rows += [Row("memory, copy", bench.limits["memcpy_gb_per_second"], "GB/s"), Row("memory, read", bench.limits["read_gb_per_second"], "GB/s"),
                   Row("loopback TCP", bench.limits["loopback_gb_per_second"], "GB/s"), Row("disk, appends of 4 KiB, each synced", bench.limits["syncs_per_second"], "/s")]
    for dtype, shapes in bench.limits["gemm_gflops"].items():
        bench.rows += [Row(f"GEMM {dtype} {shape}", figure, "GFLOP/s") for shape, figure in shapes.items()]


def loopback(total=2 << 30, message=4 << 20):
    """GB/s of one TCP connection between two threads, in messages of 4 MiB."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        def send():
            with socket.create_connection(server.getsockname()) as connection:
                data = bytes(message)
                for _ in range(total // message):
                    connection.sendall(data)

        sender = threading.Thread(target=send)
        sender.start()
        connection, _ = server.accept()
        buffer, received, start = bytearray(message), 0, time.monotonic()
        with connection:
            while count := connection.recv_into(buffer):
                received += count
        seconds = time.monotonic() - start
        sender.join()
    return received / seconds / 1e9


def syncs(directory, seconds=2.0):
    """Appends of 4 KiB a second, each synced."""
    count, block = 0, bytes(4096)
    with open(directory / "sync.bin", "wb", buffering=0) as file:
        start = time.monotonic()
        while time.monotonic() - start < seconds:
            file.write(block)
            os.fdatasync(file.fileno())
            count += 1
        return count / (time.monotonic() - start)
