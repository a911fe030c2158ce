//! Seats for connections: who comes when all are taken gets that of whoever has been idle for longest.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use tokio::sync::oneshot;

use super::limits::{Limit, Reached};
use crate::config::{ServeLimits, TrustedProxies};

/// All of them.
#[derive(Debug)]
pub(super) struct Seats {
    connections: usize,
    per_address: usize,
    /// Behind which there may be anybody.
    proxies: TrustedProxies,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    taken: HashMap<u64, Taken>,
    /// How many of them each counted address has.
    addresses: HashMap<IpAddr, usize>,
}

#[derive(Debug)]
struct Taken {
    /// None: it is not counted.
    address: Option<IpAddr>,
    /// How many requests or links there are on this connection.
    busy: usize,
    /// Since when there are none.
    idle_since: Instant,
    leave: oneshot::Sender<()>,
}

impl Seats {
    pub(super) fn new(limits: &ServeLimits, proxies: TrustedProxies) -> Self {
        Self {
            connections: limits.connections,
            per_address: limits.connections_per_address,
            proxies,
            table: Mutex::default(),
        }
    }

    /// Takes a seat for a connection. The second part tells when it has to leave.
    pub(super) fn take(
        self: &Arc<Self>,
        from: IpAddr,
    ) -> Result<(Seat, oneshot::Receiver<()>), Reached> {
        let address = counted(from).filter(|_| !self.proxies.contains(from));
        let mut table = self.table();
        let of_address = address.map_or(0, |address| table.of(address));
        if of_address >= self.per_address && !table.turn_out(|taken| taken.address == address) {
            return Err(Reached {
                limit: Limit::ConnectionsPerAddress,
                most: self.per_address,
            });
        }
        if table.taken.len() >= self.connections && !table.turn_out(|_| true) {
            return Err(Reached {
                limit: Limit::Connections,
                most: self.connections,
            });
        }
        let (leave, told) = oneshot::channel();
        let seat = Seat {
            seats: Arc::clone(self),
            number: table.add(address, leave),
        };
        Ok((seat, told))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn of(&self, address: IpAddr) -> usize {
        self.addresses.get(&address).copied().unwrap_or_default()
    }

    fn add(&mut self, address: Option<IpAddr>, leave: oneshot::Sender<()>) -> u64 {
        let number = self.next;
        self.next += 1;
        let taken = Taken {
            address,
            busy: 0,
            idle_since: Instant::now(),
            leave,
        };
        self.taken.insert(number, taken);
        if let Some(address) = address {
            *self.addresses.entry(address).or_default() += 1;
        }
        number
    }

    fn remove(&mut self, number: u64) -> Option<Taken> {
        let taken = self.taken.remove(&number)?;
        if let Some(address) = taken.address
            && let Some(count) = self.addresses.get_mut(&address)
        {
            *count -= 1;
            if *count == 0 {
                self.addresses.remove(&address);
            }
        }
        Some(taken)
    }

    /// Frees the seat of the one who has been idle for longest, if anybody is.
    fn turn_out(&mut self, which: impl Fn(&Taken) -> bool) -> bool {
        let idle = self
            .taken
            .iter()
            .filter(|(_, taken)| taken.busy == 0 && which(taken));
        let longest = idle.min_by_key(|(number, taken)| (taken.idle_since, **number));
        let number = longest.map(|(number, _)| *number);
        let Some(taken) = number.and_then(|number| self.remove(number)) else {
            return false;
        };
        // A connection that is closing hears nothing, and leaves anyway.
        let _ = taken.leave.send(());
        true
    }
}

/// What counts as one address: of IPv6 a network of 64 bits, which is what one customer has at least. All that a proxy
/// on this machine hands on comes from loopback.
fn counted(from: IpAddr) -> Option<IpAddr> {
    match from.to_canonical() {
        address if address.is_loopback() => None,
        IpAddr::V6(address) => {
            let network = u128::from(address) & !u128::from(u64::MAX);
            Some(Ipv6Addr::from(network).into())
        }
        address => Some(address),
    }
}

/// A connection's seat; free again when this is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Arc<Seats>,
    number: u64,
}

impl Seat {
    /// As long as this lives, nobody else gets the seat.
    pub(super) fn occupy(&self) -> Occupied {
        if let Some(taken) = self.seats.table().taken.get_mut(&self.number) {
            taken.busy += 1;
        }
        Occupied {
            seats: Arc::clone(&self.seats),
            number: self.number,
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.table().remove(self.number);
    }
}

/// Something goes on on a connection.
#[derive(Debug)]
pub(super) struct Occupied {
    seats: Arc<Seats>,
    number: u64,
}

impl Drop for Occupied {
    fn drop(&mut self) {
        if let Some(taken) = self.seats.table().taken.get_mut(&self.number) {
            taken.busy -= 1;
            taken.idle_since = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seats(connections: usize, connections_per_address: usize) -> Arc<Seats> {
        let limits = ServeLimits {
            connections,
            connections_per_address,
            ..ServeLimits::default()
        };
        let proxies = TrustedProxies {
            addresses: vec!["10.0.0.0/8".parse().unwrap()],
            user_header: None,
        };
        Arc::new(Seats::new(&limits, proxies))
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_trusted_proxy_takes_as_many_seats_as_there_are() {
        let seats = seats(3, 1);
        let taken: Vec<_> = (0..3).map(|_| seats.take(address("10.0.0.1"))).collect();
        assert!(taken.iter().all(Result::is_ok));
    }

    #[test]
    fn who_comes_last_gets_the_seat_of_who_was_idle_for_longest() {
        let seats = seats(2, 9);
        let (first, mut first_leaves) = seats.take(address("192.0.2.1")).unwrap();
        let (_second, mut second_leaves) = seats.take(address("192.0.2.2")).unwrap();
        // It has answered a request since.
        drop(first.occupy());
        let (_third, _) = seats.take(address("192.0.2.3")).unwrap();
        assert_eq!(second_leaves.try_recv(), Ok(()));
        assert!(first_leaves.try_recv().is_err());
    }

    #[test]
    fn nobody_takes_the_seat_of_who_is_served() {
        let seats = seats(1, 9);
        let (seat, mut leaves) = seats.take(address("192.0.2.1")).unwrap();
        let (one, two) = (seat.occupy(), seat.occupy());
        drop(one);
        let reached = seats.take(address("192.0.2.2")).unwrap_err();
        assert_eq!((reached.limit, reached.most), (Limit::Connections, 1));
        assert!(leaves.try_recv().is_err());
        drop(two);
        assert!(seats.take(address("192.0.2.2")).is_ok());
    }

    #[test]
    fn one_address_cannot_take_all_seats_nor_one_network_of_ipv6() {
        for crowd in [
            ["192.0.2.1", "::ffff:192.0.2.1"],
            ["2001:db8::1", "2001:db8::2"],
        ] {
            let seats = seats(9, 2);
            let held: Vec<_> = (0..2)
                .map(|at| {
                    let (seat, _) = seats.take(address(crowd[at])).unwrap();
                    (seat.occupy(), seat)
                })
                .collect();
            let reached = seats.take(address(crowd[0])).unwrap_err();
            assert_eq!(reached.limit, Limit::ConnectionsPerAddress);
            assert!(seats.take(address("198.51.100.1")).is_ok());
            drop(held);
            assert!(seats.take(address(crowd[0])).is_ok());
        }
    }

    #[test]
    fn what_comes_from_this_machine_is_not_counted_by_address() {
        let seats = seats(9, 1);
        for loopback in ["127.0.0.1", "127.0.0.1", "::1", "::ffff:127.0.0.1"] {
            let (seat, _) = seats.take(address(loopback)).unwrap();
            std::mem::forget((seat.occupy(), seat));
        }
    }

    #[test]
    fn a_seat_is_free_when_its_connection_is_gone() {
        let seats = seats(1, 1);
        for _ in 0..3 {
            let (seat, _) = seats.take(address("192.0.2.1")).unwrap();
            let occupied = seat.occupy();
            drop(seat);
            drop(occupied);
        }
        assert!(seats.table().addresses.is_empty());
    }
}
