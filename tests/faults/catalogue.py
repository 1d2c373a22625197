# SPDX-License-Identifier: Apache-2.0
"""What is broken on purpose, what must be seen then, and which tests do it.

``C…`` are the numbers of the fault catalogue the product was designed against; faults of HTTP alone are with
the client's own tests, and named here too. What is marked ``long`` runs with ``--faults`` only; the table
says which faults are broken in each run of the tests.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to break it. ``tests`` are node ids, or their beginnings."""

    id: str
    broken: str
    seen: str
    tests: tuple[str, ...]


PROCESSES, RUNNER = "tests/workers/test_processes.py", "tests/workers/test_runner.py"
LOSS, WATCH, OUT = (
    "tests/workers/test_server_loss.py",
    "tests/workers/test_watchdog.py",
    "tests/workers/test_calls_out.py",
)
STEPS, WORKERS, POSTGRES, REDIS = (
    "tests/faults/test_steps.py",
    "tests/faults/test_workers.py",
    "tests/faults/test_postgres.py",
    "tests/faults/test_redis.py",
)
ASSISTANT = "tests/faults/test_assistant.py"
FLEET, HTTP = "tests/resilience/test_fleet_processes.py", "tests/resilience/test_http_faults.py"

FAULTS: tuple[Fault, ...] = (
    Fault(
        "C1",
        "a worker is killed in the middle of its work",
        "another goes on; one effect",
        (f"{PROCESSES}::test_a_killed_worker_costs_an_attempt_and_nothing_else",),
    ),
    Fault(
        "C2",
        "a worker is killed at each point between write, send, answer and commit",
        "the plane is asked first; each effect once",
        (f"{STEPS}::test_a_worker_killed_there",),
    ),
    Fault(
        "C3",
        "a worker freezes past its lease and wakes up",
        "it writes nothing and sends nothing",
        (
            f"{WORKERS}::test_a_worker_that_wakes_up_when_its_work_is_done_writes_and_sends_nothing",
            f"{PROCESSES}::test_a_frozen_worker_writes_nothing_when_it_wakes_up",
            "tests/resilience/test_fence.py::",
        ),
    ),
    Fault(
        "C4",
        "SIGTERM while a long job runs",
        "given back with its attempt, exit 0",
        (f"{PROCESSES}::test_a_stopped_worker_gives_back_what_it_cannot_finish",),
    ),
    Fault(
        "C6",
        "the whole fleet is killed with 500 operations running",
        "all complete, each once",
        (
            f"{WORKERS}::test_the_whole_fleet_killed_with_500",
            f"{PROCESSES}::test_the_whole_fleet_killed_at_once",
        ),
    ),
    Fault(
        "C7",
        "a job that raises every time",
        "FAILED after four attempts with its class; others flow",
        (f"{PROCESSES}::test_a_job_that_raises_each_time_fails_after_three_retries",),
    ),
    Fault(
        "C8",
        "a job that kills its process",
        "worker_lost after four deaths, twenty-four if it had written; neighbours go on",
        (
            f"{PROCESSES}::test_a_job_that_kills_its_process_runs_out_of_attempts",
            "tests/domain/test_dispatch.py::TestLostWorkers::",
        ),
    ),
    Fault(
        "C9",
        "a job that blocks the whole process",
        "the watchdog ends it; neighbours run once more",
        (f"{WATCH}::test_the_neighbours_of_a_job_that_blocks_run_once_more_elsewhere",),
    ),
    Fault(
        "C10",
        "a job that swallows its cancellation",
        "nobody else begins it; the watchdog ends it",
        (
            f"{RUNNER}::test_a_job_that_ignores_its_cancellation_keeps_its_operation_until_it_ends",
            f"{WATCH}::test_a_job_that_cannot_be_stopped_ends_its_process_and_runs_out_of_attempts",
        ),
    ),
    Fault(
        "C12",
        "one wake-up delivered ten times to three workers",
        "one run",
        (f"{PROCESSES}::test_the_same_wake_up_delivered_ten_times_is_one_run",),
    ),
    Fault(
        "C15",
        "300 long jobs in flight and one rollback",
        "it starts within a second",
        (f"{PROCESSES}::test_a_rollback_starts_within_a_second",),
    ),
    Fault(
        "C17",
        "Redis is away when work is accepted",
        "it runs soon after Redis is back, empty",
        (f"{LOSS}::test_what_is_accepted_while_redis_is_away_runs_soon_after_it_returns",),
    ),
    Fault(
        "C18",
        "Redis is emptied with hundreds queued",
        "all run once",
        (f"{PROCESSES}::test_an_emptied_redis_loses_nothing", f"{LOSS}::test_a_redis_that_restarts_empty"),
    ),
    Fault(
        "C19",
        "Redis is stopped (SIGSTOP)",
        "workers live, running jobs are recorded",
        (f"{LOSS}::test_a_redis_that_answers_nothing_stops_neither_worker_nor_running_jobs",),
    ),
    Fault(
        "C21",
        "Redis fails over to an older copy",
        "all run once, nothing that is done runs again",
        (f"{REDIS}::test_a_failover_to_an_older_copy_runs_nothing_twice_and_loses_nothing",),
    ),
    Fault(
        "C22",
        "Redis is full",
        "the relay waits, nothing is lost",
        (f"{REDIS}::test_a_redis_that_is_full_delays_the_work_and_loses_none",),
    ),
    Fault(
        "C23",
        "Redis is silent under open and closed breakers",
        "no call waits for it",
        (f"{FLEET}::test_a_silent_redis_delays_no_call_and_the_fifth_failure_still_opens",),
    ),
    Fault(
        "redis",
        "Redis is killed, stopped, silent, emptied, full in the middle of rollouts",
        "intents are accepted at once, all complete, each change once",
        (f"{REDIS}::test_rollouts_go_on_and_are_accepted_at_once_whatever_becomes_of_redis",),
    ),
    Fault(
        "C25",
        "PostgreSQL crashes, all sessions drop",
        "once; no worker ends",
        (
            f"{POSTGRES}::test_a_postgresql_that_crashes_in_the_middle_of_rollouts_costs_no_device",
            f"{PROCESSES}::test_dropped_database_sessions_cost_no_worker_and_no_second_effect",
            f"{LOSS}::test_a_postgresql_that_restarts_costs_no_worker",
        ),
    ),
    Fault(
        "C26",
        "PostgreSQL is gone for 40 s in the middle of rollouts",
        "503 with Retry-After; all complete, no device failed",
        (f"{POSTGRES}::test_an_outage_in_the_middle_of_rollouts_is_told_and_costs_no_device",),
    ),
    Fault(
        "C27",
        "the answer to COMMIT is lost",
        "an intent is stored once; a worker does nothing twice",
        (
            "tests/faults/test_commits.py::test_a_worker_whose_commit_was_carried_out_unheard",
            "tests/test_runtime.py::test_a_commit_whose_answer_is_lost_is_looked_up_by_its_key",
        ),
    ),
    Fault(
        "C29",
        "a row is locked for long",
        "its work waits, other work flows",
        (f"{POSTGRES}::test_a_row_that_is_locked_for_long_delays_its_own_work_and_no_other",),
    ),
    Fault(
        "C30",
        "twenty statements that are too slow",
        "counted; the breaker stays closed",
        ("tests/test_runtime.py::test_slow_statements_are_counted_and_open_nothing",),
    ),
    Fault(
        "C31",
        "200 callers want a pool of two",
        "refused soon; the breaker stays closed",
        ("tests/test_runtime.py::test_a_pool_that_is_used_up_opens_nothing_and_recovers_at_once",),
    ),
    Fault(
        "C32",
        "a relay dies between ringing and stamping",
        "rung again, run once",
        ("tests/workers/test_relay.py::test_a_wake_up_that_was_lost_on_its_way_is_rung_again",),
    ),
    Fault(
        "C34",
        "429 with seconds to wait, or a date by a clock an hour off",
        "all processes keep the pause",
        (
            f"{FLEET}::test_a_pause_that_one_process_was_asked_for_is_kept_by_all",
            f"{FLEET}::test_a_pause_until_a_date_counts_from_the_services_own_clock",
        ),
    ),
    Fault(
        "C36",
        "429 with an hour to wait",
        "no attempt, no slot",
        (f"{OUT}::test_a_pause_of_an_hour_costs_no_attempt_and_no_slot",),
    ),
    Fault(
        "C37",
        "503 five times",
        "the sixth caller is refused without a request",
        ("tests/resilience/test_http.py::test_five_failures_open_and_the_sixth_caller_is_refused",),
    ),
    Fault(
        "C38",
        "answers that come byte by byte",
        "cut at the limit of the attempt",
        (f"{HTTP}::test_a_slow_answer_is_cut_at_the_limit_of_the_attempt_and_frees_its_slot",),
    ),
    Fault(
        "C39",
        "answers are lost after the plane acted",
        "no second object; success",
        ("tests/test_journeys.py::test_an_answer_that_is_lost_after_the_plane_acted_makes_no_second_object",),
    ),
    Fault(
        "C41",
        "refused connections, unknown names, bad certificates",
        "transient, or permanent and reported",
        (
            f"{HTTP}::test_a_service_that_cannot_be_reached_is_transient",
            f"{HTTP}::test_a_certificate_that_is_not_trusted_is_permanent",
        ),
    ),
    Fault(
        "C42",
        "a token ends under fifty callers",
        "one renewal",
        ("tests/resilience/test_auth.py::test_fifty_callers_with_an_expired_token_cause_one_renewal",),
    ),
    Fault(
        "C44",
        "credentials are refused for ever",
        "two requests, a person is asked",
        (f"{OUT}::test_credentials_that_are_refused_for_ever_cause_two_requests",),
    ),
    Fault(
        "C46",
        "half-open with many callers",
        "one probe; then step by step",
        (f"{FLEET}::test_half_open_lets_one_request", "tests/resilience/test_ramp.py::"),
    ),
    Fault(
        "C47",
        "the prober is killed",
        "the next probe comes when its lease ends",
        (f"{FLEET}::test_the_death_of_a_prober_delays_the_next_probe_by_its_lease_at_most",),
    ),
    Fault(
        "C48",
        "every second answer is an error",
        "left alone within a minute, called little more often",
        (f"{FLEET}::test_a_service_that_fails_every_second_time",),
    ),
    Fault(
        "C50",
        "cancellations at four times the capacity",
        "no slot is lost, half of the capacity does good",
        ("tests/resilience/test_overload.py::test_no_slot_is_lost_and_half_of_the_capacity_does_good",),
    ),
    Fault(
        "C51",
        "idle connections are closed by the service",
        "nobody notices",
        (f"{HTTP}::test_an_idle_connection_that_fades_away_is_seen_by_nobody",),
    ),
    Fault(
        "C53",
        "a plane says yes and does nothing",
        "drift is found and told; no silent success",
        ("tests/test_reconciliation.py::test_a_plane_that_says_yes_and_does_nothing",),
    ),
    Fault(
        "C56",
        "nobody is there for three ticks",
        "each schedule's rule is followed",
        ("tests/domain/test_schedules.py::test_after_three_missed_ticks_the_rule_is_followed",),
    ),
    Fault(
        "C58",
        "an operator isolates a service",
        "work waits, then goes on at once",
        (f"{OUT}::test_an_isolated_service_is_left_alone_until_it_is_enabled",),
    ),
    Fault(
        "C60",
        "the language model hangs, trickles, breaks off, refuses, is overloaded",
        "the answer ends within its time, what there was of it is kept; no rollout waits",
        (
            "tests/workers/test_conversation_faults.py::",
            f"{ASSISTANT}::test_a_provider_that_hangs_keeps_no_rollout_waiting",
        ),
    ),
    Fault(
        "C60 killed",
        "a worker is killed in the middle of a streamed answer; an answer is delivered ten times",
        "another goes on after the last finished round; one answer",
        (
            f"{ASSISTANT}::test_a_worker_killed_in_the_middle_of_an_answer",
            "tests/workers/test_conversations.py::test_one_answer_is_made_however_often_it_is_delivered",
        ),
    ),
    Fault(
        "C60 hostile",
        "applications and devices whose names and messages are orders to the model, and it obeys",
        "denied and counted; nothing changes",
        (
            "tests/workers/test_hostile_data.py::test_the_name_of_an_application_is_no_order",
            "tests/workers/test_hostile_data.py::test_what_a_device_says_is_no_order",
        ),
    ),
    Fault(
        "C60 secrets",
        "secrets in names, messages, reasons, and what the model and its provider say",
        "none in a request, a log or a row",
        ("tests/workers/test_hostile_data.py::test_no_secret_goes_out_or_is_kept",),
    ),
    Fault(
        "plane",
        "all planes are away for a minute, and misbehave",
        "the rollout holds; no device fails",
        (
            "tests/test_five_planes.py::test_all_planes_complete_through_faults",
            "tests/test_journeys.py::test_a_plane_that_is_away_holds_the_rollout_and_fails_no_device",
        ),
    ),
    Fault(
        "gate",
        "a plane is away for longer than its devices may be silent, in the middle of a gate",
        "the gate's numbers are those of a run without it",
        ("tests/faults/test_planes.py::",),
    ),
    Fault(
        "clock",
        "workers' clocks are an hour off, both ways",
        "no device fails; one time is told",
        ("tests/faults/test_clocks.py::", "tests/test_clock.py::"),
    ),
    Fault(
        "buttons",
        "five people press every button while workers die",
        "every answer legal; the history verifies",
        (
            "tests/faults/test_operators.py::test_everybody_presses_every_button_while_workers_die",
            "tests/test_decisions.py::test_two_hundred_orders_at_once_tell_one_story",
        ),
    ),
    Fault(
        "lives",
        "random orders, outcomes, outages and crashes (hypothesis)",
        "the invariants hold after each step",
        ("tests/domain/test_lives.py::", "tests/domain/test_operators.py::"),
    ),
    Fault(
        "history",
        "events changed, deleted, reordered, cut off by SQL",
        "the first broken link is named",
        ("tests/domain/test_audit.py::",),
    ),
    Fault(
        "storm",
        "all of it at once, for minutes",
        "nothing lost, nothing twice, no device failed",
        ("tests/faults/test_storm.py::",),
    ),
)
