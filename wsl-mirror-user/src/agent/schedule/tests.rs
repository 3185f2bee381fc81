use super::*;
use crate::agent::repair_limit::{BURST, PAUSE, WINDOW};

const MILLISECOND: Duration = Duration::from_millis(1);

fn schedule() -> (Schedule, Instant) {
    let now = Instant::now();
    (Schedule::new(now), now)
}

#[test]
fn an_interface_is_read_at_once() {
    let (mut schedule, now) = schedule();
    schedule.note(Event::Machine, now);
    assert_eq!(schedule.next_look(), now);
    assert_eq!(schedule.take(now), Changes { machine: true, ..Changes::default() });
    assert!(schedule.take(now).is_empty());
    let later = now + LEGACY.quiet;
    assert_eq!(schedule.take(later), Changes { legacy: true, ..Changes::default() }, "engines go on");
}

#[test]
fn packet_filters_are_read_once_quiet_or_at_the_limit() {
    let (mut schedule, start) = schedule();
    let mut now = start;
    while schedule.take(now).is_empty() {
        schedule.note(Event::PacketFilters, now);
        now += 50 * MILLISECOND;
    }
    assert_eq!(now - start, EDIT.limit, "one change after the other");
    schedule.note(Event::PacketFilters, now);
    assert!(schedule.take(now + 99 * MILLISECOND).is_empty());
    let changes = schedule.take(now + EDIT.quiet);
    assert_eq!(changes, Changes { packet_filters: true, ..Changes::default() });
}

#[test]
fn a_storm_of_routes_is_read_a_few_times_a_second() {
    let (mut schedule, start) = schedule();
    let mut looks = 0;
    for millisecond in 0..1000 {
        let now = start + millisecond * MILLISECOND;
        schedule.note(Event::Routing, now);
        let changes = schedule.take(now);
        assert!(!changes.legacy, "routes say nothing of packet filters");
        looks += u32::from(changes.machine);
    }
    assert_eq!(looks, 3);
    let last = start + 999 * MILLISECOND;
    assert!(schedule.next_look() <= last + ROUTING.quiet);
    assert_eq!(schedule.take(last + ROUTING.quiet), Changes { machine: true, ..Changes::default() });
    assert!(schedule.take(last + ROUTING.quiet).is_empty());
}

#[test]
fn an_idle_schedule_looks_twice_a_minute() {
    let (mut schedule, start) = schedule();
    let mut looks = 0;
    while schedule.next_look() <= start + Duration::from_mins(1) {
        let now = schedule.next_look();
        assert_eq!(schedule.take(now), Changes { unwatched: true, ..Changes::default() });
        schedule.went_well(Repair::None, now);
        looks += 1;
    }
    assert_eq!(looks, 2);
}

#[test]
fn failed_rounds_are_retried_less_and_less_often() {
    let (mut schedule, mut now) = schedule();
    let mut pauses = Vec::new();
    for _ in 0..7 {
        schedule.went_wrong(now);
        let next = schedule.next_look().max(schedule.retry.map_or(now, |(retry, _)| retry));
        pauses.push((next - now).as_secs());
        now = next;
        assert_eq!(schedule.take(now), Changes::ALL);
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
    schedule.went_well(Repair::None, now);
    assert!(schedule.next_look() > now + RETRY);
}

/// Somebody undoes at once what we do, for so long: when we repaired.
fn fight(schedule: &mut Schedule, start: Instant, long: Duration) -> Vec<Instant> {
    let mut repairs = Vec::new();
    let mut now = start;
    while now < start + long {
        schedule.note(Event::Machine, now);
        assert!(schedule.take(now).machine, "it is looked at in any case");
        let repair = match schedule.repairs(now) {
            Repairs::HeldBack => Repair::HeldBack,
            Repairs::Allowed => Repair::Done,
        };
        schedule.went_well(repair, now);
        if repair == Repair::Done {
            repairs.push(now);
        }
        now += 10 * MILLISECOND;
    }
    repairs
}

#[test]
fn repairs_that_are_undone_become_rare_until_it_is_quiet() {
    let (mut schedule, start) = schedule();
    let repairs = fight(&mut schedule, start, Duration::from_mins(2));
    assert!(repairs[BURST - 1] - start < PAUSE, "at once, as long as there is hope");
    assert!(repairs[BURST - 1..].windows(2).all(|pair| pair[1] - pair[0] >= PAUSE), "then one in a while");
    assert_eq!(repairs.len(), BURST + 23, "for as long as it takes");
    // Once it was quiet, what comes is put right at once again.
    let later = repairs[repairs.len() - 1] + WINDOW;
    assert_eq!(fight(&mut schedule, later, Duration::from_secs(1)).len(), BURST);
}

#[test]
fn held_back_repairs_are_made_after_the_pause() {
    let (mut schedule, start) = schedule();
    let repairs = fight(&mut schedule, start, Duration::from_secs(1));
    let truce = repairs[repairs.len() - 1] + PAUSE;
    schedule.legacy = None;
    assert_eq!(schedule.next_look(), truce);
    assert!(schedule.take(repairs[repairs.len() - 1] + PAUSE / 2).is_empty());
    assert!(schedule.take(truce).machine && schedule.repairs(truce) == Repairs::Allowed);
    schedule.went_well(Repair::None, truce);
    assert!(schedule.next_look() > truce + PAUSE, "they have given up");
}

#[test]
fn a_retry_leaves_out_a_file_that_is_being_written() {
    let (mut schedule, now) = schedule();
    schedule.went_wrong(now);
    let retry = now + RETRY;
    schedule.note(Event::Config, now + RETRY / 2 + RETRY * 49 / 100);
    assert_eq!(schedule.take(retry), Changes { config: false, ..Changes::ALL });
    assert!(schedule.take(retry + EDIT.quiet).config, "once it is quiet");
}

#[test]
fn a_refused_configuration_is_read_again_with_each_look() {
    let (mut schedule, now) = schedule();
    schedule.note_config(ConfigState::Refused);
    let look = now + LOOK;
    assert_eq!(schedule.take(look), Changes { unwatched: true, config: true, ..Changes::default() });
    schedule.note_config(ConfigState::InForce);
    assert!(!schedule.take(look + LOOK).config);
}
