use tokio::time::timeout;

use super::*;

/// What the requests of these sessions take.
const SOME: u64 = 256 << 10;
const ALL: u64 = TOGETHER as u64;

const IDLE: Demand = Demand {
    needs: None,
    uses: false,
    left: 0,
};
/// Requests wait, and nothing is on its way.
const NEEDS: Demand = Demand {
    needs: Some(SOME),
    ..IDLE
};
/// Replies are coming, and nothing else is asked for.
const USES: Demand = Demand { uses: true, ..IDLE };
/// Replies are coming, and more requests wait.
const BOTH: Demand = Demand {
    uses: true,
    ..NEEDS
};

/// A session of these turns that has just begun.
fn begin(turns: &Turns, now: Instant) -> Turn {
    let mut turn = Turn::new(Some(turns.clone()), now);
    assert_eq!(turn.proceed(now, IDLE), Some(Some(0)));
    turn
}

/// Sessions that have all there is, and another that waits for its turn.
async fn crowd(turns: &Turns, now: Instant) -> (Vec<Turn>, Turn) {
    let mut busy: Vec<_> = (0..ALL / SOME).map(|_| begin(turns, now)).collect();
    for turn in &mut busy {
        assert_eq!(turn.proceed(now, NEEDS), Some(Some(SOME)));
    }
    let mut late = begin(turns, now);
    assert_eq!(late.proceed(now, NEEDS), None);
    assert!(timeout(Duration::ZERO, late.come()).await.is_err());
    (busy, late)
}

/// Uses a turn up and gets nothing back in time; gives when that was.
fn be_late(turn: &mut Turn, now: Instant) -> Instant {
    assert_eq!(turn.proceed(now, NEEDS), Some(Some(SOME)));
    assert_eq!(turn.deadline(), Some(now + TIME));
    now + TIME
}

#[tokio::test]
async fn who_has_no_turn_gets_what_the_first_gives_back_whose_replies_are_there() {
    let (turns, now) = (Turns::new(), Instant::now());
    let (mut busy, mut late) = crowd(&turns, now).await;
    assert_eq!(busy[1].proceed(now, BOTH), None, "replies are coming");
    assert_eq!(busy[1].proceed(now, IDLE), Some(Some(0)));
    let permit = late.come().await;
    assert_eq!(late.take(now, permit), Some(SOME));
    assert_eq!(busy[1].proceed(now, NEEDS), None, "it waits again");
    assert_eq!(busy[0].proceed(now, IDLE), Some(Some(0)));
    drop(busy[1].come().await);
}

#[test]
fn who_is_alone_goes_on_without_an_end() {
    let (turns, now) = (Turns::new(), Instant::now());
    let mut alone = begin(&turns, now);
    assert_eq!(alone.proceed(now, NEEDS), Some(Some(SOME)));
    for at in 0..100 {
        let now = now + at * TIME;
        assert_eq!(alone.proceed(now, BOTH), Some(Some(ALL)));
    }
    assert_eq!(alone.deadline(), Some(now + 100 * TIME));
}

#[test]
fn who_uses_its_turns_up_gets_longer_ones_and_who_does_not_gets_what_it_used() {
    let (turns, now) = (Turns::new(), Instant::now());
    let mut other = begin(&turns, now);
    assert_eq!(other.proceed(now, NEEDS), Some(Some(SOME)));
    let mut turn = begin(&turns, now);
    assert_eq!(turn.proceed(now, NEEDS), Some(Some(SOME)));
    assert_eq!(turn.proceed(now, NEEDS), Some(Some(2 * SOME)));
    assert_eq!(turn.proceed(now, NEEDS), Some(Some(4 * SOME)));
    let left = Demand { left: SOME, ..IDLE };
    assert_eq!(turn.proceed(now, left), Some(Some(0)));
    assert_eq!(turn.proceed(now, NEEDS), Some(Some(3 * SOME)));
}

#[tokio::test]
async fn who_asks_for_a_lot_is_not_passed_over_and_gets_half_of_what_there_is() {
    let (turns, now) = (Turns::new(), Instant::now());
    let most = u64::from(turns.longest());
    let mut busy: Vec<_> = (0..=most / SOME).map(|_| begin(&turns, now)).collect();
    for turn in &mut busy {
        assert_eq!(turn.proceed(now, NEEDS), Some(Some(SOME)));
    }
    let mut large = begin(&turns, now);
    let needs = Some(10 * ALL);
    assert_eq!(large.proceed(now, Demand { needs, ..IDLE }), None);
    assert!(timeout(Duration::ZERO, large.come()).await.is_err());
    let mut small = begin(&turns, now);
    assert_eq!(small.proceed(now, NEEDS), None, "it came later");
    assert_eq!(busy[0].proceed(now, IDLE), Some(Some(0)));
    let permit = large.come().await;
    assert_eq!(large.take(now, permit), Some(most));
}

#[tokio::test]
async fn who_is_late_by_chance_waits_again_and_leaves_the_turn_to_others() {
    let (turns, start) = (Turns::new(), Instant::now());
    let (mut busy, mut late) = crowd(&turns, start).await;
    let now = start + TIME;
    assert_eq!(busy[0].proceed(now, BOTH), None);
    assert_eq!(busy[0].deadline(), None);
    let permit = late.come().await;
    late.take(now, permit);
}

#[test]
fn who_is_late_again_and_again_goes_without_for_longer_and_longer() {
    let (turns, mut now) = (Turns::new(), Instant::now());
    let mut slow = begin(&turns, now);
    for _ in 0..FORGIVEN {
        now = be_late(&mut slow, now);
        assert_eq!(slow.proceed(now, USES), Some(Some(0)));
    }
    let mut exemptions = Vec::new();
    for _ in 0..40 {
        now = be_late(&mut slow, now);
        assert_eq!(slow.proceed(now, USES), Some(None));
        let until = slow.deadline().unwrap();
        exemptions.push(until - now);
        now = until;
        assert_eq!(slow.proceed(now, IDLE), Some(Some(0)));
    }
    assert_eq!(exemptions[..3], [EXEMPTION, 2 * EXEMPTION, 4 * EXEMPTION]);
    assert_eq!(exemptions[39], LONGEST_EXEMPTION);
    assert_eq!(slow.proceed(now, NEEDS), Some(Some(SOME)));
    assert_eq!(slow.proceed(now, IDLE), Some(Some(0)), "in time");
    now = be_late(&mut slow, now);
    assert_eq!(slow.proceed(now, USES), Some(Some(0)), "forgiven");
}

#[tokio::test]
async fn sessions_that_end_leave_their_turns_to_others() {
    let (turns, now) = (Turns::new(), Instant::now());
    drop(crowd(&turns, now).await);
    assert_eq!(turns.free.available_permits(), TOGETHER as usize);
}

#[test]
fn without_turns_everything_is_allowed() {
    let now = Instant::now();
    let mut turn = Turn::new(None, now);
    assert_eq!(turn.proceed(now, BOTH), None);
    assert_eq!(turn.deadline(), None, "nothing will ever change that");
}
