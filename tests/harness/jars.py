"""Apache Kafka itself: the jars of a version, from Maven, in a cache that later runs share.

`REPLICATOR_JARS` names the cache's folder; without it, it is `kafka-log-replicator/jars` in the user's cache.
One folder a version; a folder that exists is complete, because it is filled under another name and then
renamed.
"""

import fcntl
import functools
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

# The newest releases of both lines whose artifacts below all resolve.
NEWEST_3 = "3.9.2"
NEWEST_4 = "4.3.1"

_ARTIFACTS = ("kafka_2.13", "kafka-tools", "connect-mirror", "connect-runtime")
_SLF4J_VERSION = "1.7.36"  # the line that Kafka 3.9 and 4.x both compile against
_JAVA_MIN = 17
_RESOLVE_TIMEOUT_S = 600


class KafkaUnavailable(Exception):
    """This machine cannot run Kafka. The message says whether Java, Maven or the jars are missing."""


def jars(version: str) -> Path:
    """Return the folder of Kafka `version` and all it needs, resolved by Maven when it is not cached.

    One process resolves at a time: Maven's own repository is not made for several.
    Raises KafkaUnavailable when Maven is missing or cannot resolve the version.
    """
    folder = cache_root() / version
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(prefix=f".{version}-", dir=folder.parent) as scratch:
                _resolve(version, Path(scratch)).rename(folder)
    return folder


def cache_root() -> Path:
    """Return the folder of all versions; it may not exist yet."""
    if root := os.environ.get("REPLICATOR_JARS"):
        return Path(root)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "kafka-log-replicator" / "jars"


def class_path(version: str) -> str:
    """Return the Java class path of Kafka `version`, with slf4j-simple as the only logging backend."""
    # Kafka 3.9 brings a second slf4j binding, and which of two wins depends on their order.
    chosen = (jar for jar in jars(version).glob("*.jar") if not jar.name.startswith("slf4j-reload4j"))
    return os.pathsep.join(sorted(map(str, chosen)))


@functools.cache
def java() -> str:
    """Return the path of a Java of at least version 17, from JAVA_HOME or PATH.

    Raises KafkaUnavailable when there is none.
    """
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=os.path.join(home, "bin") if home else None)
    if not found:
        raise KafkaUnavailable(f"needs Java {_JAVA_MIN} and Maven: there is no java in JAVA_HOME or PATH")
    answer = subprocess.run([found, "-version"], capture_output=True, text=True, check=False)
    version = re.search(r'version "(\d+)', answer.stderr)
    # macOS ships a java that only says where to get one.
    if answer.returncode or not version:
        raise KafkaUnavailable(f"needs Java {_JAVA_MIN} and Maven: {found} does not run ({answer.stderr.strip()})")
    if int(version[1]) < _JAVA_MIN:
        raise KafkaUnavailable(f"needs Java {_JAVA_MIN} and Maven: {found} is Java {version[1]}")
    return found


def _resolve(version: str, scratch: Path) -> Path:
    maven = shutil.which("mvn")
    if not maven:
        raise KafkaUnavailable(
            f"needs Java {_JAVA_MIN} and Maven: Kafka {version} is not cached and mvn is not in PATH"
        )
    pom = scratch / "pom.xml"
    pom.write_text(_pom(version))
    goal = ["dependency:copy-dependencies", f"-DoutputDirectory={scratch / 'jars'}"]
    command = [maven, "-q", "-B", "-f", str(pom), *goal]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_RESOLVE_TIMEOUT_S, check=False)
    if done.returncode:
        reason = "\n".join((done.stdout + done.stderr).strip().splitlines()[-8:])
        raise KafkaUnavailable(f"needs Java {_JAVA_MIN} and Maven: Maven could not resolve Kafka {version}:\n{reason}")
    return scratch / "jars"


def _pom(version: str) -> str:
    wanted = [("org.apache.kafka", artifact, version) for artifact in _ARTIFACTS]
    wanted.append(("org.slf4j", "slf4j-simple", _SLF4J_VERSION))
    dependencies = "".join(
        f"<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId>"
        f"<version>{release}</version></dependency>"
        for group, artifact, release in wanted
    )
    return (
        '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
        "<groupId>kafka.log.replicator</groupId><artifactId>test-jars</artifactId><version>1</version>"
        f"<packaging>pom</packaging><dependencies>{dependencies}</dependencies></project>\n"
    )
