"""Manual pages and completions say what the program does."""

import re
import subprocess

import pytest

import places

COMMANDS = places.commands()


def page(name):
    """A manual page as a reader sees it, on one line, and formatted without a warning."""
    path = places.MANUAL / "man" / f"{name}.1"
    environment = {"LC_ALL": "C.UTF-8", "MANWIDTH": "400", "PATH": "/usr/bin:/bin"}
    command = ["man", "--warnings", "--no-hyphenation", "--no-justification", "--local-file", path]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert shown.stderr == ""
    return " ".join(re.sub(".\b", "", shown.stdout).split())


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_a_page_has_every_option_and_an_example(command):
    name, words = ("nbd-proxy", []) if command is None else (f"nbd-proxy-{command}", [command])
    shown = page(name)
    for option in re.findall(r"^ +(?:-\w, )?(--[\w-]+)", places.output(places.PROGRAM, *words, "--help"), re.MULTILINE):
        assert option in shown
    assert f"EXAMPLES nbd-proxy {command or ''}" in shown
    for heading in ["SYNOPSIS", "OPTIONS", "FILES", "ENVIRONMENT", "EXIT STATUS"]:
        assert heading in shown


def test_the_program_s_page_names_all_others_and_there_are_no_more():
    shown = page("nbd-proxy")
    for command in COMMANDS:
        assert f"nbd-proxy-{command}(1)" in shown
    pages = sorted(path.stem for path in (places.MANUAL / "man").iterdir())
    assert pages == sorted(["nbd-proxy", *(f"nbd-proxy-{command}" for command in COMMANDS)])


def test_what_a_command_has_below_it_is_in_its_page():
    shown = page("nbd-proxy-passwd")
    for words in ["passwd add", "passwd token revoke", "--expires <DAYS>"]:
        assert words in shown


def complete(*words):
    """What Bash offers for the last of these words."""
    script = r"""
        source "$1"; shift
        [[ $(complete -p nbd-proxy) =~ -F\ ([^ ]+) ]]
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
        "${BASH_REMATCH[1]}" nbd-proxy "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\n' "${COMPREPLY[@]}"
    """
    completions = places.MANUAL / "completions" / "nbd-proxy.bash"
    return places.output("bash", "-c", script, "bash", completions, *words).split()


def test_bash_completes_commands_and_options():
    assert set(COMMANDS) <= set(complete("nbd-proxy", ""))
    assert complete("nbd-proxy", "sta") == ["status"]
    assert complete("nbd-proxy", "eject", "--f") == ["--force"]


def test_other_shells_have_completions_too():
    for name in ["_nbd-proxy", "nbd-proxy.fish"]:
        text = (places.MANUAL / "completions" / name).read_text()
        assert all(command in text for command in COMMANDS)
