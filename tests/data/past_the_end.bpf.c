/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* past_the_end: a kernel half that no verifier lets through: it does not ask how long the frame is. */
#include "bpf/lib/stage.bpf.h"

STAGE(past_the_end)
{
	return *(__u8 *)(long)frame->ctx->data ? next() : to_stack();
}
