"""What lies where in a data directory (default `.flint/`, 0700), and the secrets that are made once and kept there.

flint.toml      the settings in force (0600), written at every start from the user's own `flint.toml` and the secrets
admin.key       the local admin key (0600); its hash is in the database
secrets.json    passwords and tokens of this stack (0600)
config/         one settings file per process (0600), each with what its role needs
postgres/ nats/ etcd/     the servers' stores
logs/           one file per child
run/            lock and state file
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass, fields
from pathlib import Path

from flint_rpc.api_keys import ApiKey, generate, parse
from flint_stack.errors import StackError

__all__ = ["Layout", "StackSecrets", "write_private"]


@dataclass(frozen=True, slots=True)
class StackSecrets:
    """Generated once per data directory. Never logged; repr shows nothing of them."""

    postgres_superuser: str
    postgres: str
    internal_token: str
    nats_operator: str
    nats_gateway: str
    nats_scheduler: str
    nats_registry: str
    nats_worker: str

    def __repr__(self) -> str:
        return "StackSecrets(...)"

    def nats_password(self, role: str) -> str:
        """The password of the NATS user of a role."""
        return str(getattr(self, f"nats_{role}"))


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths below one data directory (absolute)."""

    root: Path

    @classmethod
    def at(cls, data_dir: Path) -> Layout:
        """The layout of `data_dir`, which need not exist yet."""
        return cls(data_dir.absolute())

    @property
    def config_file(self) -> Path:
        """The settings in force."""
        return self.root / "flint.toml"

    @property
    def user_config_file(self) -> Path:
        """The user's own settings: `flint.toml` beside the data directory."""
        return self.root.parent / "flint.toml"

    @property
    def admin_key_file(self) -> Path:
        """The local admin key."""
        return self.root / "admin.key"

    @property
    def secrets_file(self) -> Path:
        """Passwords and tokens."""
        return self.root / "secrets.json"

    @property
    def postgres_dir(self) -> Path:
        """PostgreSQL's folder."""
        return self.root / "postgres"

    @property
    def nats_dir(self) -> Path:
        """The NATS server's folder."""
        return self.root / "nats"

    @property
    def etcd_dir(self) -> Path:
        """etcd's folder."""
        return self.root / "etcd"

    @property
    def logs(self) -> Path:
        """The logs' folder."""
        return self.root / "logs"

    @property
    def state_file(self) -> Path:
        """Who runs."""
        return self.root / "run" / "state.json"

    @property
    def lock_file(self) -> Path:
        """Held by the supervisor."""
        return self.root / "run" / "lock"

    @property
    def host_socket(self) -> Path:
        """Where the worker host listens."""
        return self.root / "run" / "workers.sock"

    def process_config_file(self, name: str) -> Path:
        """Settings of one process."""
        return self.root / "config" / f"{name}.toml"

    def log_file(self, name: str) -> Path:
        """Log of one child."""
        return self.logs / f"{name}.log"

    def make(self) -> None:
        """Makes the folders, readable by the user alone. Raises StackError when that cannot be done."""
        try:
            for folder in (self.root, self.logs, self.root / "run", self.root / "config"):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.root.chmod(0o700)
        except OSError as error:
            raise StackError(f"The data directory {self.root} cannot be used: {error.strerror}.") from None

    def load_secrets(self) -> StackSecrets:
        """The secrets of this directory, made now if there are none. The caller holds the directory's lock."""
        if not self.secrets_file.exists():
            if (self.postgres_dir / "data").exists():
                raise StackError(
                    f"{self.secrets_file} is missing, but {self.postgres_dir} holds a database that was made with the "
                    "passwords in it. Bring the file back, or remove the data directory to begin anew."
                )
            made = {field.name: secrets.token_urlsafe(24) for field in fields(StackSecrets)}
            write_private(self.secrets_file, json.dumps(made, indent=1))
        try:
            return StackSecrets(**json.loads(self.secrets_file.read_text()))
        except (TypeError, json.JSONDecodeError) as error:
            raise StackError(f"{self.secrets_file} cannot be read: {error}.") from None

    def load_admin_key(self) -> ApiKey:
        """The local admin key, made now if there is none. Raises StackError when the file holds something else."""
        if not self.admin_key_file.exists():
            return self.renew_admin_key()
        key = parse(self.admin_key_file.read_text().strip())
        if key is None:
            raise StackError(
                f"{self.admin_key_file} holds no key of Flint's; remove it, and the next start makes another."
            )
        return key

    def renew_admin_key(self) -> ApiKey:
        """Replaces the local admin key by a fresh one."""
        key = generate()
        write_private(self.admin_key_file, f"{key.token}\n")
        return key


def write_private(path: Path, text: str) -> None:
    """Replaces a file atomically, readable by the user alone, and waits until it is on the disk."""
    fresh = path.with_name(path.name + ".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
