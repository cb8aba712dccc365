"""Redis Cluster: commands by slot, sent to every master at once.

redis-py's own cluster pipeline spends more on a command than Redis and the network do. Here commands go straight to
the master of their slot; whatever a move of slots, a failover or a broken connection leaves unanswered is repeated
through redis-py, which follows redirections and finds the new masters. Every command may be repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from graph_features.stores.redis_link import ROWS_PER_SCRIPT, ROWS_PER_TRIP, SCANNED_PER_STEP, Tail
from graph_features.stores.storing import slices

if TYPE_CHECKING:
    from redis.cluster import ClusterNode

    from graph_features.stores.redis_link import RedisTarget

Command = tuple[Any, ...]

COMMANDS_PER_TRIP = 20_000


class ClusterLink:
    """All masters of one cluster."""

    def __init__(self, target: RedisTarget) -> None:
        from redis.cluster import ClusterNode, RedisCluster

        nodes = [ClusterNode(host, port) for host, port in target.nodes]  # type: ignore[no-untyped-call]
        options = {"socket_keepalive": True, "client_name": "ringfence", **target.options}
        self.client: Any = RedisCluster(startup_nodes=nodes, **options)
        self._loaded: dict[str, str] = {}

    def get(self, names: Sequence[bytes]) -> list[bytes | None]:
        answers: list[bytes | None] = []
        for part in slices(len(names), COMMANDS_PER_TRIP):
            answers += self._get(names[part])
        return answers

    def _get(self, names: Sequence[bytes]) -> list[bytes | None]:
        return self._send([("GET", name) for name in names], names, lambda i: self.client.get(names[i]))

    def get_with_fields(
        self, hash_name: str, fields: Sequence[bytes], names: Sequence[bytes]
    ) -> tuple[list[bytes | None], list[bytes | None]]:
        # Two trips: nothing orders the answers of different masters.
        first: list[bytes | None] = self.client.hmget(hash_name, list(fields)) if fields else []
        return first, self.get(names)

    def run(self, script: str, names: Sequence[bytes], values: Sequence[bytes], tail: Tail) -> int:
        if script not in self._loaded:
            # On every master. One that comes later answers that it has no such script, and is sent it with the row.
            self._loaded[script] = self.client.script_load(script)
        sha, total = self._loaded[script], 0
        for trip in slices(len(names), ROWS_PER_TRIP):
            groups = self._by_slot(names, trip)
            commands = [self._evalsha(sha, names, values, tail, rows) for rows in groups]
            first = [names[rows[0]] for rows in groups]

            def again(i: int, groups: list[list[int]] = groups) -> int:
                # Row by row: keys of a slot that is on its way may be on both sides.
                return sum(self._eval(script, names, values, tail, row) for row in groups[i])

            total += sum(self._send(commands, first, again))
        return total

    def _by_slot(self, names: Sequence[bytes], trip: slice) -> list[list[int]]:
        from redis.crc import key_slot

        groups: dict[int, list[int]] = {}
        for row in range(trip.start, trip.stop):
            groups.setdefault(key_slot(names[row]), []).append(row)
        return [rows[part] for rows in groups.values() for part in slices(len(rows), ROWS_PER_SCRIPT)]

    @staticmethod
    def _evalsha(sha: str, names: Sequence[bytes], values: Sequence[bytes], tail: Tail, rows: Sequence[int]) -> Command:
        last = list(tail(slice(rows[0], rows[0] + 1)))
        if last[1] == "AT":
            last = [*last[:2], *(tail(slice(row, row + 1))[2] for row in rows)]
        return ("EVALSHA", sha, len(rows), *(names[row] for row in rows), *(values[row] for row in rows), *last)

    def _eval(self, script: str, names: Sequence[bytes], values: Sequence[bytes], tail: Tail, row: int) -> int:
        done: int = self.client.eval(script, 1, names[row], values[row], *tail(slice(row, row + 1)))
        return done

    def unlink(self, names: Sequence[bytes]) -> None:
        self._send([("UNLINK", name) for name in names], names, lambda i: self.client.unlink(names[i]))

    def scan(self, pattern: bytes) -> Iterator[bytes]:
        found: Iterator[bytes] = self.client.scan_iter(match=pattern, count=SCANNED_PER_STEP)
        return found

    def _send(self, commands: Sequence[Command], keys: Sequence[bytes], again: Callable[[int], Any]) -> list[Any]:
        """Answers in order; `again(i)` repeats command i by redis-py's own means."""
        answers: list[Any] = [_UNANSWERED] * len(commands)
        talks: list[_Talk] = []
        try:
            for node, places in self._by_node(keys).items():
                talks.append(_Talk(self.client.get_redis_connection(node), places))
                talks[-1].send([commands[place] for place in places])
            for talk in talks:
                talk.receive(answers)
        finally:
            for talk in talks:
                talk.end()
        for place, answer in enumerate(answers):
            if answer is _UNANSWERED:
                answers[place] = again(place)
        return answers

    def _by_node(self, keys: Sequence[bytes]) -> dict[ClusterNode, list[int]]:
        from redis.crc import key_slot

        masters = {slot: nodes[0] for slot, nodes in self.client.nodes_manager.slots_cache.items() if nodes}
        groups: dict[ClusterNode, list[int]] = {}
        for place, key in enumerate(keys):
            node = masters.get(key_slot(key))
            if node is not None:
                groups.setdefault(node, []).append(place)
        return groups


_UNANSWERED = object()


class _Talk:
    """One exchange with one master; what fails stays unanswered. `end` must be called, whatever happens."""

    def __init__(self, server: Any, places: Sequence[int]) -> None:
        self._pool = server.connection_pool
        self._places = places
        self._connection: Any = None
        self._sent = self._read = False

    def send(self, commands: Sequence[Command]) -> None:
        import redis

        try:
            self._connection = self._pool.get_connection()
            self._connection.send_packed_command(self._connection.pack_commands(commands))
            self._sent = True
        except (redis.ConnectionError, redis.TimeoutError, OSError):
            return

    def receive(self, answers: list[Any]) -> None:
        """Fill in the answers; raise the last error that a repetition would not mend."""
        import redis

        if not self._sent:
            return
        repeated = (redis.exceptions.AskError, redis.exceptions.TryAgainError, redis.exceptions.ClusterDownError)
        refused: redis.ResponseError | None = None
        try:
            for place in self._places:
                try:
                    answers[place] = self._connection.read_response()
                except (*repeated, redis.exceptions.NoScriptError, redis.ReadOnlyError):
                    continue
                except redis.ResponseError as error:
                    refused = error
        except (redis.ConnectionError, redis.TimeoutError, OSError):
            return
        self._read = True
        if refused is not None:
            raise refused

    def end(self) -> None:
        """Give the connection back, closed unless every answer was read: it could take them for those of the next."""
        if self._connection is not None:
            if not self._read:
                self._connection.disconnect()
            self._pool.release(self._connection)
