"""What Redis' directives and their values mean: forms, bounds and equality, as in config.c of 7.0 to 7.4.

A value is text as CONFIG GET prints it or as redis.conf has it: `1gb` and `1073741824` are one value, `1g` is
another. A directive that is not listed here (of a module, or newer) is plain text.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass

from .model import squeeze

#: NAME, `!` fixed at the start or `~` protected, `@` the version after 7.0 that brought it; its form; its
#: words, or least and most.
_TABLE = """
acl-pubsub-default enum allchannels resetchannels
aclfile! text
acllog-max-len int 0 9223372036854775807
active-defrag-cycle-max int 1 99
active-defrag-cycle-min int 1 99
active-defrag-ignore-bytes memory 1 9223372036854775807
active-defrag-max-scan-fields int 1 9223372036854775807
active-defrag-threshold-lower int 0 1000
active-defrag-threshold-upper int 0 1000
active-expire-effort int 1 10
activedefrag bool
activerehashing bool
always-show-logo! bool
aof-disable-auto-gc bool
aof-load-truncated bool
aof-rewrite-cpulist! text
aof-rewrite-incremental-fsync bool
aof-timestamp-enabled bool
aof-use-rdb-preamble bool
appenddirname! text
appendfilename! text
appendfsync enum everysec always no
appendonly bool
auto-aof-rewrite-min-size memory 0 9223372036854775807
auto-aof-rewrite-percentage int 0 2147483647
bgsave-cpulist! text
bind words
bind-source-addr text
bio-cpulist! text
busy-reply-threshold int 0 9223372036854775807
client-default-resp!@7.2 int 2 3
client-output-buffer-limit buffers
client-query-buffer-limit memory 1048576 9223372036854775807
cluster-allow-pubsubshard-when-down bool
cluster-allow-reads-when-down bool
cluster-allow-replica-migration bool
cluster-announce-bus-port int 0 65535
cluster-announce-hostname text
cluster-announce-human-nodename@7.2 text
cluster-announce-ip text
cluster-announce-port int 0 65535
cluster-announce-tls-port int 0 65535
cluster-config-file! text
cluster-enabled! bool
cluster-link-sendbuf-limit memory 0 18446744073709551615
cluster-migration-barrier int 0 2147483647
cluster-node-timeout int 0 9223372036854775807
cluster-ping-interval@7.2 int 0 9223372036854775807
cluster-port! int 0 65535
cluster-preferred-endpoint-type enum ip hostname unknown-endpoint
cluster-replica-no-failover bool
cluster-replica-validity-factor int 0 2147483647
cluster-require-full-coverage bool
crash-log-enabled bool
crash-memcheck-enabled bool
daemonize! bool
databases! int 1 2147483647
dbfilename~ text
dir~ folder
disable-thp! bool
dynamic-hz bool
enable-debug-command! enum no yes local
enable-module-command! enum no yes local
enable-protected-configs! enum no yes local
hash-max-listpack-entries int 0 9223372036854775807
hash-max-listpack-value memory 0 9223372036854775807
hide-user-data-from-log@7.4 bool
hll-sparse-max-bytes memory 0 9223372036854775807
hz int 0 2147483647
ignore-warnings text
io-threads! int 1 128
io-threads-do-reads! bool
jemalloc-bg-thread bool
key-load-delay int -2147483648 2147483647
latency-monitor-threshold int 0 9223372036854775807
latency-tracking bool
latency-tracking-info-percentiles percentiles
lazyfree-lazy-eviction bool
lazyfree-lazy-expire bool
lazyfree-lazy-server-del bool
lazyfree-lazy-user-del bool
lazyfree-lazy-user-flush bool
lfu-decay-time int 0 2147483647
lfu-log-factor int 0 2147483647
list-compress-depth int 0 2147483647
list-max-listpack-size int -2147483648 2147483647
loading-process-events-interval-bytes int 1024 2147483647
locale-collate@7.2 text
logfile! text
loglevel enum debug verbose notice warning nothing
masterauth text
masteruser text
max-new-connections-per-cycle@7.4 int 1 1000
max-new-tls-connections-per-cycle@7.4 int 1 1000
maxclients int 1 4294967295
maxmemory memory 0 18446744073709551615
maxmemory-clients percent -100 9223372036854775807
maxmemory-eviction-tenacity int 0 100
maxmemory-policy enum volatile-lru volatile-lfu volatile-random volatile-ttl allkeys-lru allkeys-lfu \
  allkeys-random noeviction
maxmemory-samples int 1 2147483647
min-replicas-max-lag int 0 2147483647
min-replicas-to-write int 0 2147483647
no-appendfsync-on-rewrite bool
notify-keyspace-events events
oom-score-adj enum no yes absolute relative
oom-score-adj-values ints
pidfile! text
port int 0 65535
proc-title-template text
propagation-error-behavior enum ignore panic panic-on-replicas
protected-mode bool
proto-max-bulk-len memory 1048576 9223372036854775807
rdb-del-sync-files bool
rdb-key-save-delay int -2147483648 2147483647
rdb-save-incremental-fsync bool
rdbchecksum! bool
rdbcompression bool
repl-backlog-size memory 1 9223372036854775807
repl-backlog-ttl int 0 9223372036854775807
repl-disable-tcp-nodelay bool
repl-diskless-load enum disabled on-empty-db swapdb
repl-diskless-sync bool
repl-diskless-sync-delay int 0 2147483647
repl-diskless-sync-max-replicas int 0 2147483647
repl-ping-replica-period int 1 2147483647
repl-timeout int 1 2147483647
replica-announce-ip text
replica-announce-port int 0 65535
replica-announced bool
replica-ignore-disk-write-errors bool
replica-ignore-maxmemory bool
replica-lazy-flush bool
replica-priority int 0 2147483647
replica-read-only bool
replica-serve-stale-data bool
replicaof! replicaof
req-res-logfile!@7.2 text
requirepass text
sanitize-dump-payload enum no yes clients
save save
server-cpulist! text
set-max-intset-entries int 0 9223372036854775807
set-max-listpack-entries@7.2 int 0 9223372036854775807
set-max-listpack-value@7.2 int 0 9223372036854775807
set-proc-title! bool
shutdown-on-sigint flags default save nosave now force
shutdown-on-sigterm flags default save nosave now force
shutdown-timeout int 0 2147483647
slowlog-log-slower-than int -1 9223372036854775807
slowlog-max-len int 0 9223372036854775807
socket-mark-id! int 0 4294967295
stop-writes-on-bgsave-error bool
stream-node-max-bytes memory 0 9223372036854775807
stream-node-max-entries int 0 9223372036854775807
supervised! enum upstart systemd auto no
syslog-enabled! bool
syslog-facility! enum user local0 local1 local2 local3 local4 local5 local6 local7
syslog-ident! text
tcp-backlog! int 0 2147483647
tcp-keepalive int 0 2147483647
timeout int 0 2147483647
tls-auth-clients enum no yes optional
tls-ca-cert-dir text
tls-ca-cert-file text
tls-cert-file text
tls-ciphers text
tls-ciphersuites text
tls-client-cert-file text
tls-client-key-file text
tls-client-key-file-pass text
tls-cluster bool
tls-dh-params-file text
tls-key-file text
tls-key-file-pass text
tls-port int 0 65535
tls-prefer-server-ciphers bool
tls-protocols text
tls-replication bool
tls-session-cache-size int 0 2147483647
tls-session-cache-timeout int 0 2147483647
tls-session-caching bool
tracking-table-max-keys int 0 9223372036854775807
unixsocket! text
unixsocketperm! octal 0 511
use-exit-on-panic bool
watchdog-period int 0 2147483647
zset-max-listpack-entries int 0 9223372036854775807
zset-max-listpack-value memory 0 9223372036854775807
"""

#: Names that directives had before, which the server still takes.
OLD_NAMES = {
    "cluster-slave-no-failover": "cluster-replica-no-failover",
    "cluster-slave-validity-factor": "cluster-replica-validity-factor",
    "hash-max-ziplist-entries": "hash-max-listpack-entries",
    "hash-max-ziplist-value": "hash-max-listpack-value",
    "list-max-ziplist-size": "list-max-listpack-size",
    "lua-time-limit": "busy-reply-threshold",
    "min-slaves-max-lag": "min-replicas-max-lag",
    "min-slaves-to-write": "min-replicas-to-write",
    "repl-ping-slave-period": "repl-ping-replica-period",
    "slave-announce-ip": "replica-announce-ip",
    "slave-announce-port": "replica-announce-port",
    "slave-ignore-maxmemory": "replica-ignore-maxmemory",
    "slave-lazy-flush": "replica-lazy-flush",
    "slave-priority": "replica-priority",
    "slave-read-only": "replica-read-only",
    "slave-serve-stale-data": "replica-serve-stale-data",
    "slaveof": "replicaof",
    "zset-max-ziplist-entries": "zset-max-listpack-entries",
    "zset-max-ziplist-value": "zset-max-listpack-value",
}
#: Values that nobody but the server may read.
SECRET = frozenset({"requirepass", "masterauth", "tls-key-file-pass", "tls-client-key-file-pass"})
#: Forms that take several words.
SEVERAL = frozenset({"save", "buffers", "ints", "words", "replicaof", "percentiles", "flags"})
#: Limits of clients as the server has them where nothing says otherwise (normal, replica, pubsub).
BUFFERS = {"normal": (0, 0, 0), "slave": (256 << 20, 64 << 20, 60), "pubsub": (32 << 20, 8 << 20, 60)}

_UNITS = {"": 1, "b": 1, "k": 1000, "kb": 1 << 10, "m": 10**6, "mb": 1 << 20, "g": 10**9, "gb": 1 << 30}
_MEMORY = re.compile(r"([0-9]+)([A-Za-z]*)\Z")
_INTEGER = re.compile(r"(0|-?[1-9][0-9]*)\Z")
_COUNT = re.compile(r"[+-]?[0-9]+\Z")
#: Names of files in the server's folder.
_BARE_NAMES = frozenset({"dbfilename", "appendfilename", "appenddirname"})
_VARIABLE = re.compile(r"\{(title|listen-addr|server-mode|port|tls-port|unixsocket|config-file)\}")
#: The classes of events that `A` stands for, in the order in which the server prints them, and the others.
_EVENTS, _OTHER_EVENTS = "g$lshzxetd", "KEm"


@dataclass(frozen=True)
class Directive:
    """One name of redis.conf."""

    name: str
    form: str = "text"
    words: tuple[str, ...] = ()
    low: int = 0
    high: int = 0
    #: only a restart brings another value
    fixed: bool = False
    #: so too, unless enable-protected-configs allows more
    protected: bool = False
    #: not in 7.0
    later: bool = False


def _rows() -> dict[str, Directive]:
    found = {}
    for row in _TABLE.strip().split("\n"):
        head, form, *rest = row.split()
        head, _at, since = head.partition("@")
        name = head.rstrip("!~")
        bounds = (0, 0) if form in ("enum", "flags") or not rest else (int(rest[0]), int(rest[1]))
        found[name] = Directive(
            name,
            form,
            tuple(rest) if form in ("enum", "flags") else (),
            *bounds,
            fixed=head.endswith("!"),
            protected=head.endswith("~"),
            later=bool(since),
        )
    return found


DIRECTIVES = _rows()


def known_as(name: str) -> str:
    """The one name of a directive, whatever its spelling in a file."""
    name = name.lower()
    if name.endswith("_cpulist"):
        return name.replace("_", "-")
    return OLD_NAMES.get(name, name)


def directive(name: str) -> Directive:
    return DIRECTIVES.get(known_as(name)) or Directive(known_as(name))


def same(name: str, wanted: str, found: str) -> bool:
    """Whether two texts are one value; of client-output-buffer-limit the classes that `wanted` names."""
    what = directive(name)
    try:
        one, other = canonical(what, wanted), canonical(what, found)
    except ValueError:
        return squeeze(wanted) == squeeze(found)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.items() <= other.items()
    return one == other


def canonical(what: Directive, text: str) -> object:
    """What can be compared of a value; raises ValueError for one that the server refuses."""
    return _FORMS[what.form](what, text)


def memory(text: str) -> int:
    """Bytes of `64mb` (1024 based), `64m` (1000 based) or a plain number, as memtoull() of util.c."""
    found = _MEMORY.match(text)
    if found is None or found[2].lower() not in _UNITS:
        raise ValueError(f"'{text}' is no size; units are b, k, kb, m, mb, g and gb")
    return int(found[1]) * _UNITS[found[2].lower()]


def buffers(text: str) -> dict[str, tuple[int, int, int]]:
    """The limits of each class of clients that a text names."""
    words = text.split()
    if not words or len(words) % 4:
        raise ValueError("is no list of CLASS HARD SOFT SECONDS")
    found = {}
    for place in range(0, len(words), 4):
        name, hard, soft, seconds = words[place : place + 4]
        name = {"replica": "slave"}.get(name.lower(), name.lower())
        if name not in BUFFERS:
            raise ValueError(f"'{name}' is no class of clients; they are normal, replica and pubsub")
        if not _COUNT.match(seconds) or int(seconds) < 0:
            raise ValueError(f"'{seconds}' is no number of seconds")
        found[name] = (memory(hard), memory(soft), int(seconds))
    return found


def _bool(what: Directive, text: str) -> object:
    if text.lower() not in ("yes", "no"):
        raise ValueError(f"'{text}' is neither yes nor no")
    return text.lower() == "yes"


def _enum(what: Directive, text: str) -> object:
    word = text.lower()
    if word not in what.words:
        raise ValueError(f"'{text}' is none of {', '.join(what.words)}")
    return "relative" if (what.name, word) == ("oom-score-adj", "yes") else word


def _flags(what: Directive, text: str) -> object:
    if not text.split():
        raise ValueError(f"is empty; words are {', '.join(what.words)}")
    # `default` is the word for no flag at all.
    found = frozenset(_enum(what, word) for word in text.split()) - {"default"}
    if {"save", "nosave"} <= found:
        raise ValueError("names both save and nosave")
    return found


def _within(what: Directive, number: int, shown: Callable[[int], str] = str) -> int:
    if not what.low <= number <= what.high:
        raise ValueError(f"is out of range; give {shown(what.low)} to {shown(what.high)}")
    return number


def _int(what: Directive, text: str) -> object:
    if not _INTEGER.match(text):
        raise ValueError(f"'{text}' is no whole number")
    number = _within(what, int(text))
    return min(max(number, 1), 500) if what.name == "hz" else number


def _memory(what: Directive, text: str) -> object:
    return _within(what, memory(text))


def _percent(what: Directive, text: str) -> object:
    if text.endswith("%") and _INTEGER.match(text[:-1]):
        if not 0 <= int(text[:-1]) <= -what.low:
            raise ValueError(f"is out of range; give 0% to {-what.low}%")
        # The server keeps a share as a negative number, so that none of anything is 0.
        return -int(text[:-1])
    return _within(what, memory(text))


def _octal(what: Directive, text: str) -> object:
    if not re.match(r"[0-7]+\Z", text):
        raise ValueError(f"'{text}' is no octal number")
    return _within(what, int(text, 8), lambda number: f"{number:o}")


def _text(what: Directive, text: str) -> object:
    if what.name in _BARE_NAMES and ("/" in text or "\\" in text):
        raise ValueError(f"'{text}' is a path, and shall be a bare name")
    if what.name in ("appendfilename", "appenddirname") and not text:
        raise ValueError("is empty")
    if what.name == "proc-title-template":
        rest = _VARIABLE.sub("", text.replace("{{", ""))
        if "{" in rest or not text.replace("{title}", "").strip(" "):
            raise ValueError(f"'{text}' is no template that the server takes")
    return squeeze(text)


def _save(what: Directive, text: str) -> object:
    words = text.split()
    if len(words) % 2 or not all(_COUNT.match(word) for word in words):
        raise ValueError("is no list of SECONDS CHANGES")
    numbers = list(map(int, words))
    if any(number < 1 for number in numbers[::2]) or any(number < 0 for number in numbers[1::2]):
        raise ValueError("is no list of SECONDS (1 or more) CHANGES (0 or more)")
    return numbers


def _buffers(what: Directive, text: str) -> object:
    return buffers(text)


def _ints(what: Directive, text: str) -> object:
    words = text.split()
    if len(words) != 3 or not all(_COUNT.match(word) and -2000 <= int(word) <= 2000 for word in words):
        raise ValueError("is no list of three numbers from -2000 to 2000")
    return list(map(int, words))


def _events(what: Directive, text: str) -> object:
    """As the server prints it; with all classes of `A` set it no longer shows `n`."""
    wrong = set(text) - set(_EVENTS + _OTHER_EVENTS + "An")
    if wrong:
        raise ValueError(f"'{sorted(wrong)[0]}' is no class of events; they are A{_EVENTS}{_OTHER_EVENTS}n")
    every = "A" in text or set(_EVENTS) <= set(text)
    return frozenset(text) & set(_OTHER_EVENTS) | ({"A"} if every else set(text) & set(_EVENTS + "n"))


def _words(what: Directive, text: str) -> object:
    return text.split()


def _replicaof(what: Directive, text: str) -> object:
    words = text.split()
    if not words or [word.lower() for word in words] == ["no", "one"]:
        return []
    if len(words) != 2 or not _COUNT.match(words[1]) or not 0 <= int(words[1]) <= 65535:
        raise ValueError("is no HOST PORT")
    return [words[0], int(words[1])]


def _percentiles(what: Directive, text: str) -> object:
    numbers = list(map(float, text.split()))
    if not all(0 <= number <= 100 for number in numbers):
        raise ValueError("is no list of numbers from 0 to 100")
    return [round(number, 6) for number in numbers]


def _folder(what: Directive, text: str) -> object:
    return os.path.normpath(text)


_FORMS: dict[str, Callable[[Directive, str], object]] = {
    "bool": _bool,
    "buffers": _buffers,
    "enum": _enum,
    "events": _events,
    "flags": _flags,
    "folder": _folder,
    "int": _int,
    "ints": _ints,
    "memory": _memory,
    "octal": _octal,
    "percent": _percent,
    "percentiles": _percentiles,
    "replicaof": _replicaof,
    "save": _save,
    "text": _text,
    "words": _words,
}
