// SPDX-License-Identifier: BSD-3-Clause
// live_source: send one frame out of a device again and again, from inside the kernel, as fast as one CPU can.
//   live_source DEVICE FILE [COUNT [AT FLOWS]]     FILE holds the frame; without COUNT, or with 0, until a signal ends the one call that sends;
//                                                  AT: the offset of its ports, which go through so many FLOWS
#include <bpf/bpf.h>
#include <errno.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "live_source.skel.h"

#ifndef BPF_F_TEST_XDP_LIVE_FRAMES
#define BPF_F_TEST_XDP_LIVE_FRAMES (1U << 1)
#endif

enum { FRAME_MIN = 60, FRAME_MAX = 1514 };
static const __u32 endless = 1U << 31;  // minutes at any rate: an orphan ends by itself

static size_t read_frame(const char *path, unsigned char *frame) {
  FILE *file = fopen(path, "rb");
  if (!file) return 0;
  const size_t length = fread(frame, 1, FRAME_MAX, file);
  fclose(file);
  return length;
}

static int send_frames(const struct live_source *source, unsigned char *frame, size_t length, __u32 count) {
  struct xdp_md context = {.data_end = (__u32)length};
  LIBBPF_OPTS(bpf_test_run_opts, options, .data_in = frame, .data_size_in = (__u32)length, .ctx_in = &context,
              .ctx_size_in = sizeof(context), .repeat = (int)count, .flags = BPF_F_TEST_XDP_LIVE_FRAMES);
  return bpf_prog_test_run_opts(bpf_program__fd(source->progs.live_source), &options);
}

int main(int words, char **word) {
  unsigned char frame[FRAME_MAX] = {0};
  const __u32 zero = 0, ifindex = words > 2 ? if_nametoindex(word[1]) : 0;
  const size_t length = words > 2 ? read_frame(word[2], frame) : 0;
  if (!ifindex || length < FRAME_MIN) {
    fprintf(stderr, "usage: live_source DEVICE FILE [COUNT]: a device that is there, a file with a frame of %d to %d bytes\n",
            FRAME_MIN, FRAME_MAX);
    return 2;
  }
  struct live_source *source = live_source__open();
  const __u32 count = words > 3 ? (__u32)strtoul(word[3], NULL, 10) : 0, at = words > 5 ? (__u32)strtoul(word[4], NULL, 10) : 0;
  if (source && at + 4 <= 64) {
    source->rodata->flows_at = at;
    source->rodata->flows = words > 5 ? (__u32)strtoul(word[5], NULL, 10) : 0;
  }
  if (!source || live_source__load(source) || bpf_map_update_elem(bpf_map__fd(source->maps.out), &zero, &ifindex, BPF_ANY)) {
    fprintf(stderr, "live_source: load the source for %s: %s\n", word[1], strerror(errno));
    return 1;
  }
  memcpy(source->bss->frame, frame, sizeof(source->bss->frame));
  memcpy(&source->bss->frame_ports, frame + at, sizeof(source->bss->frame_ports));
  const int failed = send_frames(source, frame, length, count ? count : endless);
  if (failed) fprintf(stderr, "live_source: send on %s: %s\n", word[1], strerror(-failed));
  live_source__destroy(source);
  return failed ? 1 : 0;
}
