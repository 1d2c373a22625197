# SPDX-License-Identifier: Apache-2.0
"""Celery in one process: the solo pool has the least around a job; much is fetched ahead, nothing is kept."""

from celery import Celery

from bench.queues.place import Place, Told


def app_of(place: Place) -> Celery:
    """Both sides'."""
    url = place.redis_url.replace("unix://", "redis+socket://").replace("?db=", "?virtual_host=")
    app = Celery("bench", broker=url)
    app.conf.update(
        task_ignore_result=True,
        worker_prefetch_multiplier=100,
        task_default_queue="celery",
        broker_connection_retry_on_startup=True,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_disable_rate_limits=True,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
    )
    return app


def work(place: Place, told: Told) -> None:
    """One worker."""
    app = app_of(place)
    app.task(told.one, name="noop")
    app.worker_main(
        [
            *("worker", "--pool=solo", "--loglevel=ERROR", "--without-gossip", "--without-mingle"),
            "--without-heartbeat",
        ]
    )


async def enqueue(place: Place, number: int) -> None:
    """One after the other: it has no other way."""
    app = app_of(place)
    with app.connection_for_write() as connection, app.amqp.Producer(connection) as producer:
        for _ in range(number):
            app.send_task("noop", producer=producer)
