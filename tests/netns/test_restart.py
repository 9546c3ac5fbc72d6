# SPDX-License-Identifier: BSD-3-Clause
"""A start over what an earlier run left: with the same keys of all stages it takes counters and tables over, with others neither. The devices
it switches over between two frames, either way."""
import signal
import threading
import time

import pytest
from lab import frame, mac, wait_until

SWITCH = '[[pipeline]]\nname = "main"\n[[pipeline.stage]]\nplugin = "l2_switch"\n'
BROADCAST = "ff:ff:ff:ff:ff:ff"


def patch(*pair):
    return f'[[pipeline]]\nname = "main"\n[[pipeline.stage]]\nplugin = "patch"\npairs = [["{pair[0]}", "{pair[1]}"]]\n'


def end_by_kill(weir):
    weir.kill()


def end_with_keep(weir):
    assert weir.process.stop(signal.SIGTERM) == 0


ENDS = pytest.mark.parametrize("end, flags", [(end_by_kill, []), (end_with_keep, ["--keep"])], ids=["killed", "kept"])


def rewrite(weir, text):
    weir.file.write_text(f'[weir]\nname = "{weir.name}"\n' + text)


@ENDS
@pytest.mark.parametrize("egress", ["[]", '["count"]'], ids=["bare", "count"])
def test_changed_pairs_take_over_between_two_frames(lab3, end, flags, egress):
    left, old, new = lab3.wires()
    weir = lab3.weir(lab3.ports(3, egress=egress) + patch("p0", "p1"), *flags)
    end(weir)
    rewrite(weir, lab3.ports(3, egress=egress) + patch("p0", "p2"))
    sent, done = [], threading.Event()

    def keep_sending():
        while not done.is_set():
            sent.append(frame(mac(1), mac(2), len(sent).to_bytes(4, "big")))
            left.send(sent[-1])
            time.sleep(0.0005)

    sender = threading.Thread(target=keep_sending)
    sender.start()
    try:
        weir.start()
        behind = len(sent)
        wait_until(lambda: len(sent) > behind + 20, "frames behind the start")
    finally:
        done.set()
        sender.join()
    heard_new = [raw for raw in new.hear(21)]
    wait_until(lambda: heard_new[-1:] == sent[-1:] or heard_new.extend(new.waiting()), "the last frame at the new partner")
    heard_old = old.waiting()
    assert heard_old and heard_old + heard_new == sent, "each frame at one of the partners, and none of them twice"
    now = weir.conserved()
    assert now["account"]["tx"] == now["account"]["rx"] == len(heard_new), "an account of its own"


@ENDS
def test_changed_keys_of_a_switch_forget_its_addresses(lab3, end, flags):
    wires = lab3.wires()
    weir = lab3.weir(lab3.ports(3) + SWITCH, *flags)
    wires[1].send(frame(mac(0x22), BROADCAST))
    assert len(wires[0].hear(1)) == 1 and len(wires[2].hear(1)) == 1
    end(weir)
    rewrite(weir, lab3.ports(3) + SWITCH + f'table_size = 64\nstatic = [{{ mac = "{mac(0x33)}", port = "p2" }}]\n')
    weir.start()
    assert weir.stats()["account"]["rx"] == 0
    wires[0].send(frame(mac(0x11), mac(0x33), b"to the static one"))
    wires[0].send(frame(mac(0x11), mac(0x22), b"to one forgotten"))
    assert wires[2].hear(2) == [frame(mac(0x11), mac(0x33), b"to the static one"), frame(mac(0x11), mac(0x22), b"to one forgotten")]
    assert wires[1].hear(1) == [frame(mac(0x11), mac(0x22), b"to one forgotten")]
    now = weir.conserved()
    assert (now["account"]["rx"], now["account"]["tx"]) == (2, 3)


@ENDS
def test_changed_keys_of_an_egress_program_are_taken_and_counters_go_on(lab, end, flags):
    left, right = lab.wires()
    own = lab.switch.mac("p1")
    weir = lab.weir(lab.ports(2, egress='["count", { program = "mac_rewrite", dst = "02:00:00:00:00:77" }]') + patch("p0", "p1"), *flags)
    left.send(frame(mac(1), mac(2), b"one"))
    assert right.hear(1) == [frame(own, mac(0x77), b"one")]
    end(weir)
    left.send(frame(mac(1), mac(2), b"two"))
    assert right.hear(1) == [frame(own, mac(0x77), b"two")]
    rewrite(weir, lab.ports(2, egress='["count", { program = "mac_rewrite", src = "02:00:00:00:00:aa" }]') + patch("p0", "p1"))
    weir.start()
    left.send(frame(mac(1), mac(2), b"three"))
    assert right.hear(1) == [frame(mac(0xAA), mac(2), b"three")], "a key that is gone has no effect any more"
    now = weir.conserved()
    assert now["account"]["tx"] == 3 and [each["frames"] for each in now["egress"] if each["port"] == "p1"] == [3, 3]
