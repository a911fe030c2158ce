//! Certificates that clients show.

use super::*;

#[test]
fn a_client_certificate_tells_who_it_is_and_nobody_needs_one_to_be_answered() {
    let clients = Authority::new("clients");
    let secured = Secured::with(r#", "client-ca": "FOLDER/clients.crt""#, |folder| {
        clients.write(&folder.join("clients.crt"));
    });
    let alice = clients.client("alice");
    let path = "/metrics";
    assert_eq!(secured.get(path, Some(&alice)).unwrap().status, 200);
    assert_eq!(secured.get(path, None).unwrap().status, 401);
    assert!(secured.server.token.is_empty(), "people have a way to come");
    let local = clients.client("local");
    assert_eq!(
        secured.get(path, Some(&local)).unwrap().status,
        401,
        "who sits at the machine"
    );
}

#[test]
fn a_client_certificate_of_a_foreign_authority_or_past_its_time_is_refused() {
    let clients = Authority::new("clients");
    let secured = Secured::with(r#", "client-ca": "FOLDER/clients.crt""#, |folder| {
        clients.write(&folder.join("clients.crt"));
    });
    // By another authority of the same name, and by that of the server's own certificate.
    for foreign in [Authority::new("clients"), Authority::new("servers")] {
        let alice = foreign.client("alice");
        assert!(secured.get_with_token("/metrics", Some(&alice)).is_err());
    }
    let late = clients.expired_client("alice");
    assert!(secured.get_with_token("/metrics", Some(&late)).is_err());
    assert!(
        secured
            .get("/metrics", Some(&clients.client("alice")))
            .is_ok()
    );
}

#[test]
fn a_client_certificate_counts_only_where_an_authority_is_named() {
    let secured = Secured::start();
    let alice = secured.authority.client("alice");
    assert_eq!(secured.get("/metrics", Some(&alice)).unwrap().status, 401);
}
