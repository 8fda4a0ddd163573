"""How fast a float32 matrix product is on this machine: the limit that a network is judged by.

    product_gflops   threads  ->  GFLOP/s of each of some products

The rate is that of torch's product of two 2048 x 2048 matrices, 2 x 2048^3 FLOP.
"""

import time

import torch

SIZE = 2048


def product_gflops(threads: int, *, products: int) -> list[float]:
    """The rates of ``products`` products in a row, on so many threads of torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        matrix, result = torch.rand(SIZE, SIZE), torch.empty(SIZE, SIZE)
        torch.mm(matrix, matrix, out=result)  # the first one starts threads and touches pages
        rates = []
        for _ in range(products):
            started = time.perf_counter()
            torch.mm(matrix, matrix, out=result)
            rates.append(2 * SIZE**3 / (time.perf_counter() - started) / 1e9)
        return rates
    finally:
        torch.set_num_threads(before)
