//! Instances come and go, and what they own comes to rest.

use super::*;

const AFTER: Duration = Duration::from_secs(30);

fn name(number: usize) -> SubscriptionName {
    format!("sub_{number}").parse().unwrap()
}

fn names(numbers: impl IntoIterator<Item = usize>) -> BTreeSet<SubscriptionName> {
    numbers.into_iter().map(name).collect()
}

/// Instances whose workers do at once what they are asked, with a look of each every second.
struct World {
    now: Duration,
    members: Vec<Member>,
    balances: Vec<Balance>,
    /// What each one runs.
    runs: Vec<BTreeSet<SubscriptionName>>,
    moved: usize,
}

impl World {
    fn new(runs: Vec<BTreeSet<SubscriptionName>>) -> Self {
        let mut world = Self {
            now: Duration::ZERO,
            members: Vec::new(),
            balances: Vec::new(),
            runs: Vec::new(),
            moved: 0,
        };
        for runs in runs {
            world.join(runs);
        }
        world
    }

    fn join(&mut self, runs: BTreeSet<SubscriptionName>) {
        let id = i64::try_from(self.runs.len()).unwrap() + 1;
        let owned: BTreeSet<_> = self.members.iter().flat_map(|member| member.roles.owns.clone()).collect();
        let owns: BTreeSet<_> = runs.difference(&owned).cloned().collect();
        let stands_by = runs.intersection(&owned).cloned().collect();
        let roles = Roles { streams: owns.clone(), owns, stands_by };
        self.members.push(Member { id, roles, hands_over: None });
        self.balances.push(Balance::new(AFTER));
        self.runs.push(runs);
    }

    fn give(&mut self, subscription: &SubscriptionName, to: i64) {
        for (member, runs) in self.members.iter_mut().zip(&self.runs) {
            let gets = member.id == to;
            for set in [&mut member.roles.owns, &mut member.roles.streams] {
                if gets {
                    set.insert(subscription.clone())
                } else {
                    set.remove(subscription)
                };
            }
            if gets || !runs.contains(subscription) {
                member.roles.stands_by.remove(subscription);
            } else {
                member.roles.stands_by.insert(subscription.clone());
            }
        }
    }

    fn second(&mut self) {
        self.now += Duration::from_secs(1);
        for at in 0..self.members.len() {
            let id = self.members[at].id;
            self.members[at].hands_over = self.balances[at].announced().cloned();
            let members = self.members.clone();
            self.balances[at].take(self.now, id, &members);
            if let Some(subscription) = self.balances[at].asked().cloned() {
                let to = self.balances[at].announced().unwrap().to;
                let allowed = self
                    .members
                    .iter()
                    .filter(|member| promise(&self.members, member.id, &subscription) != Promise::ToAnother);
                assert_eq!(allowed.map(|member| member.id).collect::<Vec<_>>(), [to]);
                self.give(&subscription, to);
                self.moved += 1;
            }
        }
    }

    fn seconds(&mut self, seconds: u32) {
        for _ in 0..seconds {
            self.second();
        }
    }

    fn owned(&self) -> Vec<usize> {
        self.members.iter().map(|member| member.roles.owns.len()).collect()
    }
}

#[test]
fn two_instances_own_as_much_as_each_other() {
    let mut world = World::new(vec![names(0..10), names(0..10)]);
    assert_eq!(world.owned(), [10, 0]);
    world.seconds(30);
    assert_eq!((world.owned(), world.moved), (vec![10, 0], 0), "it waits until it is calm");
    world.seconds(120);
    assert_eq!((world.owned(), world.moved), (vec![5, 5], 5));
    world.seconds(600);
    assert_eq!(world.moved, 5, "nothing moves any more");
}

#[test]
fn no_more_moves_than_has_to() {
    for (subscriptions, instances, moves) in [(1, 2, 0), (2, 2, 1), (3, 2, 1), (10, 3, 6), (7, 4, 5)] {
        let mut world = World::new(vec![names(0..subscriptions); instances]);
        world.seconds(600);
        assert_eq!(world.moved, moves, "{:?}", world.owned());
        let (most, least) = (world.owned().into_iter().max(), world.owned().into_iter().min());
        assert!(most.unwrap() - least.unwrap() <= 1, "{:?}", world.owned());
    }
}

#[test]
fn one_that_comes_later_gets_its_share() {
    let mut world = World::new(vec![names(0..6); 2]);
    world.seconds(300);
    assert_eq!(world.owned(), [3, 3]);
    world.join(names(0..6));
    world.seconds(300);
    assert_eq!((world.owned(), world.moved), (vec![2, 2, 2], 5));
}

#[test]
fn an_instance_gets_only_what_it_runs() {
    let mut world = World::new(vec![names(0..10), names(0..2)]);
    world.seconds(600);
    assert_eq!(world.owned(), [8, 2]);
    assert_eq!(world.members[1].roles.owns, names(0..2));
}

#[test]
fn what_does_not_stream_stays() {
    let mut world = World::new(vec![names(0..4), names(0..4)]);
    world.members[0].roles.streams = names([2]);
    world.seconds(600);
    assert_eq!((world.owned(), world.moved), (vec![3, 1], 1));
    assert!(world.members[1].roles.owns.contains(&name(2)));
}

/// A pseudo-random number below `below`.
fn random(seed: &mut u64, below: usize) -> usize {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    usize::try_from(*seed >> 33).unwrap() % below
}

/// Whatever each one runs: it comes to rest, and no hand-over would make it more even.
#[test]
fn random_instances_come_to_rest() {
    for seed in 0..100 {
        let mut state = seed;
        let instances = 2 + random(&mut state, 4);
        let runs = (0..instances).map(|_| names((0..12).filter(|_| random(&mut state, 3) > 0))).collect();
        let mut world = World::new(runs);
        world.seconds(1200);
        let moved = world.moved;
        world.seconds(300);
        assert_eq!(world.moved, moved, "seed {seed}");
        assert_eq!(next(&world.members), None, "seed {seed}");
    }
}

/// A worker that does not let go, or another instance that does not take it: the other subscription is tried next.
#[test]
fn a_hand_over_that_fails_is_given_up() {
    for lets_go in [false, true] {
        let mut balance = Balance::new(AFTER);
        let mut asked = Vec::new();
        for second in 0..90 {
            let now = Duration::from_secs(second);
            let last = asked.last().filter(|(_, at)| lets_go && second < at + 8);
            let mut owns = names(0..3);
            if let Some((left, _)) = last {
                owns.remove(left);
            }
            let stands_by = names(0..3).difference(&owns).cloned().collect();
            let mut roles = Roles { streams: owns.clone(), owns, stands_by };
            balance.withhold(&mut roles);
            let other = Roles { stands_by: names(0..3), ..Roles::default() };
            let members = [
                Member { id: 1, roles, hands_over: balance.announced().cloned() },
                Member { id: 2, roles: other, hands_over: None },
            ];
            balance.take(now, 1, &members);
            if let Some(name) = balance.asked()
                && asked.last().is_none_or(|(last, _)| last != name)
            {
                asked.push((name.clone(), second));
            }
        }
        let tried: Vec<_> = asked.iter().map(|(name, _)| name.clone()).collect();
        assert_eq!(tried, [name(0), name(1), name(2)], "{asked:?}");
    }
}

#[test]
fn an_announcement_is_withdrawn_if_something_changes() {
    let mut world = World::new(vec![names(0..2), names(0..2)]);
    world.seconds(31);
    assert!(world.balances[0].announced().is_some());
    world.join(names(0..2));
    world.seconds(1);
    assert_eq!(world.balances[0].announced(), None);
    let mut world = World::new(vec![names(0..2), names(0..2)]);
    world.seconds(31);
    world.balances[0].lose_sight(world.now);
    assert_eq!(world.balances[0].announced(), None);
    world.seconds(29);
    assert_eq!(world.moved, 0);
}

#[test]
fn a_promise_to_one_that_is_gone_binds_nobody() {
    let hands_over = Some(HandOver { subscription: name(0), to: 2 });
    let member = |id, hands_over| Member { id, hands_over, ..Member::default() };
    let all = [member(1, hands_over), member(2, None), member(3, None)];
    assert_eq!(promise(&all, 2, &name(0)), Promise::ToUs);
    assert_eq!(promise(&all, 3, &name(0)), Promise::ToAnother);
    assert_eq!(promise(&all, 1, &name(0)), Promise::ToAnother);
    assert_eq!(promise(&all, 3, &name(1)), Promise::Nobody);
    let [first, _, third] = all;
    assert_eq!(promise(&[first, third], 3, &name(0)), Promise::Nobody);
}
