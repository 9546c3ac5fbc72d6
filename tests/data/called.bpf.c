/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* called: programs with functions that are not inlined. `alone` keeps to itself; `asks` has its function ask the runtime, which cannot be.
 * `mistaken` asks for what another kind of program is told. */
#include "bpf/lib/accounts.bpf.h"

static __attribute__((noinline)) int judge(struct xdp_md *ctx) { return ctx->data_end - ctx->data > 100 ? XDP_DROP : XDP_PASS; }

static __attribute__((noinline)) int ask(struct xdp_md *ctx) { return LINKED(egress_link, port) == ctx->data_end - ctx->data ? XDP_DROP : XDP_PASS; }

SEC("xdp") int alone(struct xdp_md *ctx) { return judge(ctx); }
SEC("xdp") int asks(struct xdp_md *ctx) { return ask(ctx); }
SEC("xdp") int drops(struct xdp_md *ctx) { return ctx->data_end - ctx->data > 30 ? XDP_DROP : XDP_PASS; }
SEC("xdp") int mistaken(struct xdp_md *ctx) { return LINKED(program_link, port.queues) > 1 ? XDP_DROP : XDP_PASS; }

char licence[] SEC("license") = "Dual BSD/GPL";
