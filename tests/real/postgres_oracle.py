"""Runs on a test host: a throw-away PostgreSQL server answers for configuration trees and for values.

JSON in: {"trees": [{PATH below etc/ or data/: TEXT, or null for a dangling link}, ...],
          "values": [[NAME, TEXT], ...]}
JSON out: {"parameters": rows of pg_settings as lists,
           "trees": [{"rows": [[file, line, name, value, applied, error], ...], "starts": bool,
                      "work_mem": TEXT, "winners": {NAME: [setting, file, line]} or null}, ...],
           "values": [[setting, shown] or null where the value is refused, ...]}
`starts` is what `postgres -C` says of the files; `winners` are of a reload, null where it does not start.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

BASE = "/var/tmp/hosttune-pg"  # noqa: S108 - on a test host
DATA, ETC = f"{BASE}/data", f"{BASE}/etc"
BIN = "/usr/lib/postgresql/15/bin"
OPTIONS = [
    *("-D", DATA, "-c", f"config_file={ETC}/postgresql.conf", "-c", "listen_addresses="),
    *("-c", f"unix_socket_directories={BASE}", "-c", f"hba_file={DATA}/pg_hba.conf"),
    *("-c", f"ident_file={DATA}/pg_ident.conf", "-c", "autovacuum=off"),
]


def as_postgres(*argv):
    return subprocess.run(
        argv, user="postgres", group="postgres", extra_groups=[], cwd="/", env={"LC_ALL": "C.UTF-8"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


class Session:
    """One psql that stays: a JSON value for each query."""

    def __init__(self):
        self.psql = subprocess.Popen(
            ["psql", "-XAtq", "-h", BASE, "-v", "ON_ERROR_STOP=1", "postgres"], user="postgres",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/", env={"PATH": "/usr/bin:/bin"},
        )  # fmt: skip

    def ask(self, sql):
        self.psql.stdin.write(f"{sql};\n\\echo =\n")
        self.psql.stdin.flush()
        lines = []
        while True:
            line = self.psql.stdout.readline()
            assert line, f"psql ended at {sql}"
            if line == "=\n":
                return json.loads("".join(lines)) if lines else None
            lines.append(line)


def rows(select):
    return f"SELECT coalesce(json_agg(json_build_array({select[0]})), '[]') FROM {select[1]}"  # noqa: S608


def install(tree):
    shutil.rmtree(ETC)
    for name in os.listdir(DATA):
        if name.endswith(".conf") and not name.startswith("pg_"):
            os.unlink(f"{DATA}/{name}")
    os.makedirs(f"{ETC}/conf.d")
    for path, text in tree.items():
        full = f"{BASE}/{path}"
        os.makedirs(os.path.dirname(full), exist_ok=True)
        if text is None:
            os.symlink("/nonexistent", full)
        else:
            with open(full, "w", newline="") as stream:
                stream.write(text)


def answer(session, tree):
    install(tree)
    found = {
        "rows": session.ask(
            rows(
                (
                    "coalesce(sourcefile, ''), coalesce(sourceline, 0), coalesce(name, ''),"
                    " coalesce(setting, ''), applied, coalesce(error, '')",
                    "(SELECT * FROM pg_file_settings ORDER BY seqno) x",
                )
            )
        )
    }
    started = as_postgres(f"{BIN}/postgres", *OPTIONS, "-C", "work_mem")
    found["starts"], found["work_mem"] = started.returncode == 0, started.stdout.strip()
    found["winners"] = reload(session) if started.returncode == 0 else None
    return found


def reload(session):
    """Who decides each parameter once the server has read the files."""
    before = session.ask("SELECT to_json(pg_conf_load_time()::text)")
    session.ask("SELECT to_json(pg_reload_conf())")
    for _ in range(500):
        if session.ask("SELECT to_json(pg_conf_load_time()::text)") != before:
            break
        time.sleep(0.01)
    else:
        raise AssertionError("the server does not read its files")
    listed = session.ask(
        rows(("name, setting, sourcefile, sourceline", "pg_settings WHERE source = 'configuration file'"))
    )
    return {name: [setting, file, line] for name, setting, file, line in listed}


def value(session, contexts, name, text):
    if contexts[name] in ("user", "superuser"):
        found = session.ask(f"SELECT attempt({quoted(name)}, {quoted(text)})")
        return found and found[:2]
    ended = as_postgres(f"{BIN}/postgres", *OPTIONS, "-c", f"{name}={text}", "-C", name)
    return [ended.stdout.rstrip("\n"), None] if ended.returncode == 0 else None


def quoted(text):
    return "'" + text.replace("'", "''") + "'"


def main():
    asked = json.load(sys.stdin)
    shutil.rmtree(BASE, ignore_errors=True)
    os.makedirs(ETC)
    for folder in (BASE, ETC):
        shutil.chown(folder, "postgres", "postgres")
    made = as_postgres(f"{BIN}/initdb", "-D", DATA, "-A", "peer", "-N", "-E", "UTF8", "--locale=C.UTF-8")
    assert made.returncode == 0, made.stderr
    # A parameter that the server was started with and no file names any more would be one more row.
    os.unlink(f"{DATA}/postgresql.conf")
    pathlib.Path(f"{ETC}/postgresql.conf").touch()
    with open(f"{BASE}/log", "w") as log:
        server = subprocess.Popen(
            [f"{BIN}/postgres", *OPTIONS], user="postgres", group="postgres", extra_groups=[],
            cwd="/", env={"LC_ALL": "C.UTF-8"}, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        while as_postgres(f"{BIN}/pg_isready", "-q", "-h", BASE).returncode:
            assert server.poll() is None, pathlib.Path(f"{BASE}/log").read_text()
            time.sleep(0.05)
        session = Session()
        parameters = session.ask(
            rows(
                (
                    "name, setting, coalesce(unit, ''), context, vartype, source, coalesce(min_val, ''),"
                    " coalesce(max_val, ''), enumvals, pending_restart, current_setting(name, true)",
                    "pg_settings",
                )
            )
        )
        session.ask(
            "CREATE FUNCTION attempt(name text, value text) RETURNS json LANGUAGE plpgsql AS $$"
            " DECLARE found json; BEGIN PERFORM set_config(name, value, true);"
            " SELECT json_build_array(setting, current_setting($1)) INTO found FROM pg_settings"
            " WHERE pg_settings.name = $1; RETURN found;"
            " EXCEPTION WHEN OTHERS THEN RETURN 'null'; END $$"
        )
        contexts = {row[0]: row[3] for row in parameters}
        found = {
            "parameters": parameters,
            "values": [value(session, contexts, *one) for one in asked.get("values", [])],
            "trees": [answer(session, tree) for tree in asked.get("trees", [])],
        }
        json.dump(found, sys.stdout)
    finally:
        server.send_signal(signal.SIGINT)  # a fast shutdown: sessions are ended
        server.wait()
        shutil.rmtree(BASE)


if __name__ == "__main__":
    main()
