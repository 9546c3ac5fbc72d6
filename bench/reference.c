// SPDX-License-Identifier: BSD-3-Clause
// reference: the end that counts, and the forwarders that others are measured against.
//   reference sink DEVICE FILE [FILE]   the first holds the frame that is to arrive, the second one that may arrive beside it
//   reference bare IN OUT               redirects from IN to OUT
//   reference bare_egress IN OUT        the same, with a program on the device entry
// Says "ready"; answers each line on standard input with "NANOSECONDS WHOLE OTHER EGRESS SECOND"; goes when the input ends.
#include <bpf/bpf.h>
#include <errno.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "bpf/abi/count.h"
#include "sink.skel.h"

enum { CPUS_MAX = 1024, FRAME_MAX = 1514 };

static int expect_frame(const char *path, volatile __u32 *length, volatile void *bytes) {
  unsigned char frame[FRAME_MAX] = {0};
  FILE *file = fopen(path, "rb");
  if (!file) return -1;
  *length = (__u32)fread(frame, 1, sizeof(frame), file);
  memcpy((void *)bytes, frame, 64);
  return fclose(file);
}

static int redirect_to(const struct sink *programs, const char *device, int with_egress) {
  const __u32 zero = 0;
  const int program = with_egress ? bpf_program__fd(programs->progs.egress) : -1;
  const struct bpf_devmap_val entry = {.ifindex = if_nametoindex(device), .bpf_prog.fd = program};
  return bpf_map_update_elem(bpf_map__fd(programs->maps.out), &zero, &entry, BPF_ANY);
}

static void answer(const struct sink *programs) {
  const __u32 zero = 0;
  const int cpus = libbpf_num_possible_cpus();
  static struct arrivals {
    __u64 whole, other, second;
  } seen[CPUS_MAX], all;
  static struct count_state counted[CPUS_MAX];
  struct timespec now;
  __u64 egress = 0;
  all = (struct arrivals){0};
  bpf_map_lookup_elem(bpf_map__fd(programs->maps.arrivals), &zero, seen);
  clock_gettime(CLOCK_MONOTONIC, &now);
  bpf_map_lookup_elem(bpf_map__fd(programs->maps.counts), &zero, counted);
  for (int cpu = 0; cpu < cpus; cpu++) {
    all.whole += seen[cpu].whole;
    all.other += seen[cpu].other;
    all.second += seen[cpu].second;
    egress += counted[cpu].frames[COUNT_UDP];
  }
  printf("%llu %llu %llu %llu %llu\n", now.tv_sec * 1000000000ULL + (unsigned long long)now.tv_nsec, all.whole, all.other, egress, all.second);
  fflush(stdout);
}

static int complain(const char *what, const char *device) {
  fprintf(stderr, "reference: %s %s: %s\n", what, device, strerror(errno));
  return 1;
}

int main(int words, char **word) {
  const int is_sink = (words == 4 || words == 5) && !strcmp(word[1], "sink");
  const int with_egress = words == 4 && !strcmp(word[1], "bare_egress");
  if (!is_sink && !with_egress && (words != 4 || strcmp(word[1], "bare"))) {
    fprintf(stderr, "usage: reference sink DEVICE FILE [FILE] | bare IN OUT | bare_egress IN OUT\n");
    return 2;
  }
  struct sink *programs = sink__open();
  if (!programs) return complain("open the programs for", word[2]);
  if (is_sink && expect_frame(word[3], &programs->rodata->frame_length, programs->rodata->frame)) return complain("read the frame from", word[3]);
  if (words == 5 && expect_frame(word[4], &programs->rodata->second_length, programs->rodata->second_frame))
    return complain("read the second frame from", word[4]);
  if (libbpf_num_possible_cpus() > CPUS_MAX || sink__load(programs)) return complain("load the programs for", word[2]);
  if (!is_sink && redirect_to(programs, word[3], with_egress)) return complain("make a device entry for", word[3]);
  // A link goes with the process, whatever ends it.
  struct bpf_link *link = bpf_program__attach_xdp(is_sink ? programs->progs.sink : programs->progs.bare, (int)if_nametoindex(word[2]));
  if (!link) return complain("attach to", word[2]);
  puts("ready");
  fflush(stdout);
  for (char line[16]; fgets(line, sizeof(line), stdin);) answer(programs);
  bpf_link__destroy(link);
  sink__destroy(programs);
  return 0;
}
