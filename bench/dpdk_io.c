// SPDX-License-Identifier: BSD-3-Clause
// dpdk_io: what DPDK's own loop costs per frame, in memory: bursts from a net_null port to the same one, as testpmd's io mode does.
//   dpdk_io SECONDS BURST...     says "BURST NANOSECONDS" of CPU time per frame for each burst size
#include <rte_eal.h>
#include <rte_ethdev.h>
#include <rte_mbuf.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { BURST_MAX = 64, MBUFS = 2047, CACHE = 256, RING = 512, TURNS = 256 };

static double cpu_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

static unsigned forward(uint16_t port, uint16_t burst) {
  struct rte_mbuf *frames[BURST_MAX];
  unsigned moved = 0;
  for (int turn = 0; turn < TURNS; turn++) {
    const uint16_t got = rte_eth_rx_burst(port, 0, frames, burst);
    const uint16_t sent = rte_eth_tx_burst(port, 0, frames, got);
    for (uint16_t i = sent; i < got; i++) rte_pktmbuf_free(frames[i]);
    moved += sent;
  }
  return moved;
}

static int start(uint16_t port) {
  const struct rte_eth_conf plain = {0};
  struct rte_mempool *pool = rte_pktmbuf_pool_create("frames", MBUFS, CACHE, 0, RTE_MBUF_DEFAULT_BUF_SIZE, SOCKET_ID_ANY);
  return pool && rte_eth_dev_configure(port, 1, 1, &plain) == 0 && rte_eth_rx_queue_setup(port, 0, RING, SOCKET_ID_ANY, NULL, pool) == 0 &&
         rte_eth_tx_queue_setup(port, 0, RING, SOCKET_ID_ANY, NULL) == 0 && rte_eth_dev_start(port) == 0;
}

static int measure(uint16_t port, double seconds, const char *text) {
  const long burst = strtol(text, NULL, 10);
  if (burst < 1 || burst > BURST_MAX) return fprintf(stderr, "dpdk_io: a burst is 1 to %d frames, not %s\n", BURST_MAX, text), 2;
  if (forward(port, (uint16_t)burst) != (unsigned)burst * TURNS) return fprintf(stderr, "dpdk_io: net_null gave and took too few frames\n"), 1;
  double frames = 0, spent = 0;
  for (const double begin = cpu_ns(); spent < seconds * 1e9; spent = cpu_ns() - begin) frames += forward(port, (uint16_t)burst);
  printf("%ld %.3f\n", burst, spent / frames);
  return 0;
}

int main(int words, char **word) {
  char *eal[] = {word[0], "--no-huge", "-m", "64", "--no-pci", "--no-telemetry", "--no-shconf", "--log-level=error", "--vdev=net_null0"};
  const double seconds = words > 2 ? strtod(word[1], NULL) : 0;
  if (seconds <= 0) return fprintf(stderr, "usage: dpdk_io SECONDS BURST...\n"), 2;
  if (rte_eal_init(sizeof(eal) / sizeof(*eal), eal) < 0 || !start(0)) {
    fprintf(stderr, "dpdk_io: start DPDK with a net_null port: %s\n", rte_strerror(rte_errno));
    return 1;
  }
  int failed = 0;
  for (int i = 2; i < words && !failed; i++) failed = measure(0, seconds, word[i]);
  rte_eal_cleanup();
  return failed;
}
