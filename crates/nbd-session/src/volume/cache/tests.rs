use super::*;

const KIB: u64 = 1 << 10;

fn bytes(range: &Range<u64>) -> Bytes {
    range
        .clone()
        .map(|at| u8::try_from(at % 251).unwrap())
        .collect()
}

/// A cache in which `range` was asked for by request 1, for part 100 if that wants some of it.
fn loading(range: &Range<u64>, wanted: Option<Range<u64>>) -> Cache {
    let mut cache = Cache::new(64 * KIB);
    let part = wanted.map(|wanted| {
        assert!(!cache.wait(RequestId(100), wanted, false).is_empty());
        RequestId(100)
    });
    cache.begin(RequestId(1), range, Origin::Demand, part);
    cache
}

fn fill(cache: &mut Cache, request: u64, range: &Range<u64>) -> Vec<Served> {
    cache.begin(RequestId(request), range, Origin::Ahead, None);
    let data = Payload::from(bytes(range));
    cache.land(RequestId(request), Ok(data)).unwrap().1
}

fn has(cache: &mut Cache, range: Range<u64>) -> bool {
    let found = cache.find(&range, false);
    if let Some(found) = &found {
        assert_eq!(found.data.to_bytes(), bytes(&range));
    }
    found.is_some()
}

#[test]
fn a_part_is_served_when_its_own_bytes_have_come() {
    let mut cache = loading(&(0..8 * KIB), Some(KIB..2 * KIB));
    assert!(cache.arrive(RequestId(1), 0, &bytes(&(0..1500))).is_empty());
    let served = cache.arrive(RequestId(1), 1500, &bytes(&(1500..4000)));
    assert_eq!(served.len(), 1);
    assert_eq!(served[0].1.to_bytes(), bytes(&(KIB..2 * KIB)));
    assert!(has(&mut cache, 0..4000));
    assert!(!has(&mut cache, 0..4001));
}

#[test]
fn what_comes_again_after_a_loss_is_known() {
    let mut cache = loading(&(0..8 * KIB), None);
    cache.arrive(RequestId(1), 0, &bytes(&(0..3000)));
    cache.arrive(RequestId(1), 0, &bytes(&(0..2000)));
    cache.arrive(RequestId(1), 2000, &bytes(&(2000..5000)));
    assert!(has(&mut cache, 0..5000));
    assert!(!has(&mut cache, 0..5001));
    cache.arrive(RequestId(1), 6000, &bytes(&(6000..7000)));
    assert!(!has(&mut cache, 4000..7000));
}

#[test]
fn a_part_takes_what_is_here_and_waits_for_the_rest() {
    let mut cache = loading(&(4 * KIB..8 * KIB), None);
    fill(&mut cache, 2, &(0..2 * KIB));
    let gaps = cache.wait(RequestId(100), KIB..9 * KIB, false);
    assert_eq!(gaps, [2 * KIB..4 * KIB, 8 * KIB..9 * KIB]);
    for (request, gap) in (3..).zip(&gaps) {
        let part = Some(RequestId(100));
        cache.begin(RequestId(request), gap, Origin::Demand, part);
    }
    for (request, range) in [(4, 8 * KIB..9 * KIB), (3, 2 * KIB..4 * KIB)] {
        let data = Payload::from(bytes(&range));
        let (_, served) = cache.land(RequestId(request), Ok(data)).unwrap();
        assert!(served.is_empty());
    }
    let data = Payload::from(bytes(&(4 * KIB..8 * KIB)));
    let (_, served) = cache.land(RequestId(1), Ok(data)).unwrap();
    assert_eq!(served[0].1.to_bytes(), bytes(&(KIB..9 * KIB)));
}

#[test]
fn who_wanted_less_than_what_failed_asks_again_and_who_wanted_all_fails() {
    let mut cache = loading(&(0..8 * KIB), Some(0..8 * KIB));
    assert!(cache.wait(RequestId(101), KIB..2 * KIB, false).is_empty());
    let Some((Landed::Failed { range, waiting }, _)) = cache.land(RequestId(1), Err(Errno::EIO))
    else {
        panic!("it landed")
    };
    assert_eq!(waiting, [RequestId(100), RequestId(101)]);
    assert_eq!(cache.narrow(RequestId(100), &range), None);
    let wanted = cache.narrow(RequestId(101), &range).unwrap();
    let gaps = cache.cover(RequestId(101), wanted);
    assert!(matches!(&gaps[..], [gap] if *gap == (KIB..2 * KIB)));
    assert!(!cache.is_waiting(RequestId(100)) && cache.is_waiting(RequestId(101)));
}

#[test]
fn memory_is_bounded_and_what_was_read_in_a_row_goes_first() {
    let mut cache = Cache::new(10 * (4 * KIB + OVERHEAD));
    let range = |index: u64| index * 4 * KIB..(index + 1) * 4 * KIB;
    for index in 0..10 {
        fill(&mut cache, index, &range(index));
    }
    cache.find(&range(5), true).unwrap();
    assert!(has(&mut cache, range(0)));
    for (index, gone) in [(10, 5), (11, 1), (12, 2)] {
        fill(&mut cache, index, &range(index));
        assert!(!has(&mut cache, range(gone)), "{gone}");
        assert!(cache.bytes <= cache.limit);
    }
    assert!(has(&mut cache, range(0)));
}

#[test]
fn what_is_on_its_way_takes_half_of_the_memory_at_most() {
    let mut cache = loading(&(0..16 * KIB), None);
    assert!(cache.has_room(15 * KIB));
    assert!(!cache.has_room(16 * KIB));
    let data = Payload::from(bytes(&(0..16 * KIB)));
    cache.land(RequestId(1), Ok(data));
    assert!(cache.has_room(16 * KIB));
}

#[test]
fn gaps_are_what_is_neither_here_nor_on_its_way() {
    let mut cache = loading(&(4 * KIB..8 * KIB), None);
    fill(&mut cache, 2, &(8 * KIB..9 * KIB));
    assert_eq!(cache.gap(&(0..16 * KIB)), Some(0..4 * KIB));
    assert_eq!(cache.gap(&(5 * KIB..16 * KIB)), Some(9 * KIB..16 * KIB));
    assert_eq!(cache.gap(&(4 * KIB..9 * KIB)), None);
    assert_eq!(cache.unwanted(), [RequestId(1)]);
}

#[test]
fn a_small_answer_does_not_keep_a_large_piece_in_memory() {
    let mut cache = Cache::new(1 << 20);
    let whole = 0..256 * KIB;
    fill(&mut cache, 1, &whole);
    let small = cache.find(&(0..4 * KIB), false).unwrap().data;
    let large = cache.find(&(0..128 * KIB), false).unwrap().data;
    let at = |data: &Payload| data.parts()[0].as_ptr();
    let piece = at(&cache.segments[&0].data);
    assert_ne!(at(&small), piece);
    assert_eq!(at(&large), piece);
}

/// A cache of four segments of 256 KiB that were read in a row: two once they were here, two as they came.
fn read_in_a_row(is_forgetful: bool) -> Cache {
    const LENGTH: u64 = 256 * KIB;
    let mut cache = Cache::new(64 * LENGTH);
    cache.be_forgetful(is_forgetful);
    for number in 0..4 {
        let range = number * LENGTH..(number + 1) * LENGTH;
        let part = RequestId(100 + number);
        if number < 2 {
            assert!(fill(&mut cache, number, &range).is_empty());
            assert!(cache.find(&range, true).is_some());
        } else {
            assert_eq!(cache.wait(part, range.clone(), true).len(), 1);
            cache.begin(RequestId(number), &range, Origin::Demand, Some(part));
            let data = Payload::from(bytes(&range));
            let (_, served) = cache.land(RequestId(number), Ok(data)).unwrap();
            assert_eq!(served[0].1.to_bytes(), bytes(&range));
        }
    }
    cache
}

#[test]
fn what_was_read_in_a_row_stays_while_there_is_room_for_it() {
    let mut cache = read_in_a_row(false);
    assert!(has(&mut cache, 0..1024 * KIB));
}

#[test]
fn of_what_was_read_in_a_row_little_stays_where_it_can_be_had_again_at_once() {
    let mut cache = read_in_a_row(true);
    assert!(!has(&mut cache, 0..1));
    assert!(!has(&mut cache, 512 * KIB - 1..512 * KIB));
    assert!(has(&mut cache, 512 * KIB..1024 * KIB));
    assert_eq!(cache.bytes, 2 * (256 * KIB + OVERHEAD));
}

#[test]
fn what_may_be_of_use_stays_also_where_it_can_be_had_again_at_once() {
    let mut cache = Cache::new(1024 * KIB);
    cache.be_forgetful(true);
    for number in 0..8 {
        let range = number * 64 * KIB..(number + 1) * 64 * KIB;
        fill(&mut cache, number, &range);
        // Not to its end, or not in a row.
        let end = range.end - number % 2;
        assert!(cache.find(&(range.start..end), number % 2 == 1).is_some());
    }
    assert!(has(&mut cache, 0..512 * KIB));
}
