"""The state hook: when it runs, with what, and what its failure means."""

import signal

import harness
import nbd
import pytest


@pytest.fixture
def setting(scope):
    return scope.configure()


@pytest.fixture
def server(scope, image):
    return scope.nbdkit("-r", "file", image.path)


def start(scope, server, setting):
    return harness.filter_fed_by(scope, server, setting=setting)


def after_start(fed):
    """Waits until the start hook was called and the device is there."""
    harness.wait_until("the start hook was called", lambda: fed.setting.calls() or not fed.program.running)
    return fed.attached()


def test_start_and_stop_with_their_arguments_and_environment(scope, server, setting, image):
    setting.hook()
    fed = start(scope, server, setting)
    device = after_start(fed)
    fed.program.send(signal.SIGTERM)
    assert fed.program.wait() == 0
    (start_arguments, start_env), (stop_arguments, stop_env) = setting.calls()
    assert start_arguments == ["start", "0"]
    assert stop_arguments == ["stop", "0"]
    for env in (start_env, stop_env):
        assert env["NBD_PROXY_DEVICE"] == str(device)
        assert env["NBD_PROXY_SIZE"] == str(len(image.content))
        assert env["NBD_PROXY_READ_ONLY"] == "1"
        assert {"NBD_PROXY_IMAGE", "NBD_PROXY_USER", "NBD_PROXY_MEDIA", "NBD_PROXY_REASON"} <= env.keys()
    assert stop_env["NBD_PROXY_REASON"]


def test_the_prototypes_fault_of_a_stop_hook_that_sees_size_0_is_gone(scope, server, setting):
    setting.hook('nbdinfo --size "nbd+unix:///?socket=$NBD_PROXY_DEVICE" >>' + str(setting.folder / "sizes") + " 2>&1")
    fed = start(scope, server, setting)
    after_start(fed)
    sizes = setting.folder / "sizes"
    harness.wait_until("the start hook has read", lambda: sizes.exists() and sizes.read_text().endswith("\n"))
    fed.program.send(signal.SIGTERM)
    assert fed.program.wait() == 0
    first, second = sizes.read_text().split()
    assert first == second == setting.calls()[0][1]["NBD_PROXY_SIZE"]


def test_the_start_hook_may_read_the_whole_device(scope, server, setting, image):
    setting.hook(f'[ "$1" = stop ] || nbdcopy "nbd+unix:///?socket=$NBD_PROXY_DEVICE" {setting.folder}/copy')
    fed = start(scope, server, setting)
    copy = setting.folder / "copy"
    harness.wait_until("the hook's copy", lambda: copy.exists() and copy.read_bytes() == image.content)
    assert fed.program.running


def test_a_start_hook_that_fails_ends_the_session_and_stop_runs(scope, server, setting):
    setting.hook('[ "$1" = stop ]')
    fed = start(scope, server, setting)
    assert fed.program.wait() == 1
    assert [arguments[0] for arguments, _ in setting.calls()] == ["start", "stop"]
    assert "start" in fed.program.stderr


def test_a_stop_hook_that_fails_is_only_reported(scope, server, setting):
    setting.hook('[ "$1" = start ]')
    fed = start(scope, server, setting)
    after_start(fed)
    fed.end_of_input()
    assert fed.program.wait() == 0
    assert "stop" in fed.program.stderr


def test_the_stop_hook_is_waited_for_whatever_signals_come(scope, server, setting):
    done = setting.folder / "done"
    setting.hook(f'[ "$1" = start ] || {{ sleep 2; touch {done}; }}')
    fed = start(scope, server, setting)
    after_start(fed)
    fed.program.send(signal.SIGTERM)
    harness.wait_until("stop begins", lambda: len(setting.calls()) == 2)
    fed.program.send(signal.SIGTERM)
    fed.program.send(signal.SIGINT)
    assert fed.program.wait() == 0
    assert done.exists()
    assert len(setting.calls()) == 2


def test_a_stop_hook_that_reads_a_dead_device_gets_an_error_instead_of_waiting(scope, server, setting):
    setting.hook(f'[ "$1" = start ] || nbdcopy "nbd+unix:///?socket=$NBD_PROXY_DEVICE" null: || touch {setting.folder}/failed')
    fed = start(scope, server, setting)
    after_start(fed)
    fed.end_of_input()
    assert fed.program.wait() == 0
    assert (setting.folder / "failed").exists()


def test_a_hook_that_does_not_end_is_killed_with_its_children(scope, server, setting):
    child = setting.folder / "child"
    setting.hook(f'[ "$1" = start ] || {{ sleep 1000 & echo $! >{child}; wait; }}', **{"hook-timeout": 1})
    fed = start(scope, server, setting)
    after_start(fed)
    fed.end_of_input()
    assert fed.program.wait() == 0
    harness.wait_until("the hook's child is gone", lambda: not alive(int(child.read_text())))


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("mode", [None, 0o644], ids=["absent", "not executable"])
def test_a_hook_that_cannot_be_run_is_skipped(scope, server, setting, mode):
    setting.hook()
    path = setting.folder / "state"
    path.unlink() if mode is None else path.chmod(mode)
    fed = start(scope, server, setting)
    fed.attached()
    fed.end_of_input()
    assert fed.program.wait() == 0
    assert setting.calls() == []


def test_a_hook_has_no_standard_input_and_output(scope, server, setting):
    seen = setting.folder / "seen"
    setting.hook(f'(readlink /proc/$$/fd/0; readlink /proc/$$/fd/1) >>{seen}; echo noise')
    fed = start(scope, server, setting)
    harness.wait_until("start has looked", lambda: seen.exists() and seen.read_text().count("\n") == 2)
    fed.program.send(signal.SIGTERM)
    assert fed.program.wait() == 0
    assert seen.read_text().split() == ["/dev/null"] * 4


def test_after_sigkill_the_next_start_runs_stop_once_and_goes_on(scope, server, setting, image):
    setting.hook()
    killed = start(scope, server, setting)
    after_start(killed)
    killed.program.send(signal.SIGKILL)
    killed.program.wait()

    fed = start(scope, server, setting)
    harness.wait_until("start runs again", lambda: len(setting.calls()) == 3 or not fed.program.running)
    assert [arguments for arguments, _ in setting.calls()] == [["start", "0"], ["stop", "0"], ["start", "0"]]
    assert setting.calls()[1][1]["NBD_PROXY_REASON"] == "recovered"
    handle = nbd.NBD()
    handle.connect_unix(str(fed.attached()))
    assert handle.pread(4096, 0) == image.content[:4096]
    fed.program.send(signal.SIGTERM)
    assert fed.program.wait() == 0
    assert len(setting.calls()) == 4

    again = start(scope, server, setting)
    harness.wait_until("start, without another stop", lambda: len(setting.calls()) == 5)
    assert setting.calls()[4][0] == ["start", "0"]
    again.end_of_input()
    assert again.program.wait() == 0


def test_after_sigkill_in_mid_hook_the_next_start_runs_stop(scope, server, setting):
    hang = setting.folder / "hang"
    hang.touch()
    setting.hook(f'while [ "$1" = start ] && [ -e {hang} ]; do sleep 0.1; done')
    killed = start(scope, server, setting)
    harness.wait_until("start is running", setting.calls)
    killed.program.send(signal.SIGKILL)
    killed.program.wait()
    hang.unlink()
    fed = start(scope, server, setting)
    harness.wait_until("start runs again", lambda: len(setting.calls()) == 3 or not fed.program.running)
    assert [arguments[0] for arguments, _ in setting.calls()] == ["start", "stop", "start"]
