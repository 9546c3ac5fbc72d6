// SPDX-License-Identifier: BSD-3-Clause
// reference: the end that counts, and the forwarders that others are measured against.
//   reference sink DEVICE FILE [FILE]      the first holds the frame that is to arrive, the second one that may arrive beside it
//   reference flows DEVICE FILE AT         the same end, where the four bytes at offset AT of a frame may be anything; in FILE they are 0
//   reference fib IN OUT                   forwards by bpf_fib_lookup(), to OUT alone
//   reference bare IN OUT                  redirects from IN to OUT
//   reference bare_egress IN OUT           the same, with a program on the device entry
//   reference entries IN OUT FORM NUMBER   redirects through NUMBER entries in turn, a power of two, all of them to OUT; FORM is array or hash
//   reference group IN FORM NUMBER OUT...  broadcasts from IN to all OUT, by a map that has room for NUMBER
// Says "ready"; answers each line on standard input with "NANOSECONDS WHOLE OTHER EGRESS SECOND REDIRECTED MISSED", of which the last two
// are those of entries and group; goes when the input ends.
#include <bpf/bpf.h>
#include <errno.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bpf/abi/count.h"
#include "sink.skel.h"

enum { CPUS_MAX = 1024, FRAME_MAX = 1514 };
enum mode { NO_MODE, SINK, FLOWS, FIB, BARE, BARE_EGRESS, ENTRIES, GROUP };
static const __u32 sparse = 2654435761U;  // from key to key of a hash

static enum mode mode_of(int words, char **word) {
  const char *name = words > 1 ? word[1] : "";
  if (!strcmp(name, "sink") && (words == 4 || words == 5)) return SINK;
  if (!strcmp(name, "flows") && words == 5) return FLOWS;
  if (!strcmp(name, "fib") && words == 4) return FIB;
  if (!strcmp(name, "bare") && words == 4) return BARE;
  if (!strcmp(name, "bare_egress") && words == 4) return BARE_EGRESS;
  if (!strcmp(name, "entries") && words == 6) return ENTRIES;
  if (!strcmp(name, "group") && words > 5) return GROUP;
  return NO_MODE;
}

static int expect_frame(const char *path, volatile __u32 *length, volatile void *bytes) {
  unsigned char frame[FRAME_MAX] = {0};
  FILE *file = fopen(path, "rb");
  if (!file) return -1;
  *length = (__u32)fread(frame, 1, sizeof(frame), file);
  memcpy((void *)bytes, frame, 64);
  return fclose(file);
}

static int shape_entries(const struct sink *programs, const char *form, __u32 number) {
  const int hash = !strcmp(form, "hash");
  if ((!hash && strcmp(form, "array")) || !number || (number & (number - 1))) {
    errno = EINVAL;
    return -1;
  }
  programs->rodata->last_entry = number - 1;
  programs->rodata->spacing = hash ? sparse : 1;
  return bpf_map__set_type(programs->maps.entries, hash ? BPF_MAP_TYPE_DEVMAP_HASH : BPF_MAP_TYPE_DEVMAP) ||
         bpf_map__set_max_entries(programs->maps.entries, number);
}

// What must be known before the programs are loaded.
static int prepare(enum mode mode, const struct sink *programs, int words, char **word) {
  switch (mode) {
    case SINK:
      return expect_frame(word[3], &programs->rodata->frame_length, programs->rodata->frame) ||
             (words == 5 && expect_frame(word[4], &programs->rodata->second_length, programs->rodata->second_frame));
    case FLOWS:
      programs->rodata->any_at = (__u32)strtoul(word[4], NULL, 10);
      return expect_frame(word[3], &programs->rodata->frame_length, programs->rodata->frame);
    case ENTRIES: return shape_entries(programs, word[4], (__u32)strtoul(word[5], NULL, 10));
    case GROUP: return shape_entries(programs, word[3], (__u32)strtoul(word[4], NULL, 10));
    default: return 0;
  }
}

static int set_entry(const struct bpf_map *map, __u32 key, const char *device, int program) {
  const struct bpf_devmap_val entry = {.ifindex = if_nametoindex(device), .bpf_prog.fd = program};
  return bpf_map_update_elem(bpf_map__fd(map), &key, &entry, BPF_ANY);
}

static int set_entries(enum mode mode, const struct sink *programs, int words, char **word) {
  const __u32 spacing = programs->rodata->spacing, number = programs->rodata->last_entry + 1;
  if (mode == BARE || mode == FIB) return set_entry(programs->maps.out, 0, word[3], -1);
  if (mode == BARE_EGRESS) return set_entry(programs->maps.out, 0, word[3], bpf_program__fd(programs->progs.egress));
  if (mode == ENTRIES)
    for (__u32 i = 0; i < number; i++)
      if (set_entry(programs->maps.entries, i * spacing, word[3], -1)) return -1;
  if (mode == GROUP)
    for (__u32 i = 0; i + 5 < (__u32)words; i++)
      if (set_entry(programs->maps.entries, i * spacing, word[5 + i], -1)) return -1;
  return 0;
}

static const struct bpf_program *program_of(enum mode mode, const struct sink *programs) {
  switch (mode) {
    case SINK:
    case FLOWS: return programs->progs.sink;
    case FIB: return programs->progs.fib;
    case ENTRIES: return programs->progs.in_turn;
    case GROUP: return programs->progs.broadcast;
    default: return programs->progs.bare;
  }
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
  const volatile struct sink__bss *forwarded = programs->bss;
  printf("%llu %llu %llu %llu %llu %llu %llu\n", now.tv_sec * 1000000000ULL + (unsigned long long)now.tv_nsec, all.whole, all.other, egress,
         all.second, forwarded->redirected, forwarded->missed);
  fflush(stdout);
}

static int complain(const char *what, const char *device) {
  fprintf(stderr, "reference: %s %s: %s\n", what, device, strerror(errno));
  return 1;
}

int main(int words, char **word) {
  const enum mode mode = mode_of(words, word);
  if (mode == NO_MODE) {
    fprintf(stderr, "usage: reference sink DEVICE FILE [FILE] | flows DEVICE FILE AT | fib IN OUT | bare IN OUT | bare_egress IN OUT | "
                    "entries IN OUT FORM NUMBER | "
                    "group IN FORM NUMBER OUT...\n");
    return 2;
  }
  struct sink *programs = sink__open();
  if (!programs) return complain("open the programs for", word[2]);
  if (prepare(mode, programs, words, word)) return complain("prepare the programs for", word[2]);
  if (libbpf_num_possible_cpus() > CPUS_MAX || sink__load(programs)) return complain("load the programs for", word[2]);
  if (set_entries(mode, programs, words, word)) return complain("make device entries for", word[2]);
  // A link goes with the process, whatever ends it.
  struct bpf_link *link = bpf_program__attach_xdp(program_of(mode, programs), (int)if_nametoindex(word[2]));
  if (!link) return complain("attach to", word[2]);
  puts("ready");
  fflush(stdout);
  for (char line[16]; fgets(line, sizeof(line), stdin);) answer(programs);
  bpf_link__destroy(link);
  sink__destroy(programs);
  return 0;
}
