"""NBD over TLS on a `tcp:` device: libnbd and QEMU, and clients that would have it otherwise."""

import hashlib
import shutil
import socket
import ssl
import subprocess

import harness
import nbd
import pytest
import raw

#: What `tls` of the configuration names.
FILES = {"certificate": "server-cert.pem", "key": "server-key.pem", "client-ca": "ca-cert.pem"}


class Authority:
    """A folder with an authority's certificate, and those that it issued, under the names that libnbd and QEMU expect."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        self._openssl("req", "-x509", "-subj", "/CN=authority", "-keyout", "ca-key.pem", "-out", "ca-cert.pem")
        self.issue("server", "subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth")
        self.issue("client", "extendedKeyUsage=clientAuth")

    def issue(self, name, extensions):
        (self.folder / "extensions").write_text(extensions)
        self._openssl("req", "-subj", f"/CN={name}", "-keyout", f"{name}-key.pem", "-out", "request.pem")
        self._openssl(
            "x509", "-req", "-in", "request.pem", "-CA", "ca-cert.pem", "-CAkey", "ca-key.pem", "-CAcreateserial",
            "-extfile", "extensions", "-out", f"{name}-cert.pem",
        )

    def without_client(self, folder):
        """A folder in which a client finds the authority alone."""
        folder.mkdir()
        shutil.copy(self.folder / "ca-cert.pem", folder)
        return folder

    def _openssl(self, *arguments):
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes") if arguments[0] == "req" else ()
        command = ("openssl", arguments[0], *key, *arguments[1:])
        subprocess.run(command, cwd=self.folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def device(image):
    """The image on a `tcp:` device that asks clients for certificates."""
    with harness.Scope.new() as scope:
        yield Device(scope, image)


class Device:
    def __init__(self, scope, image):
        self.image = image
        self.authority = Authority(scope.folder / "authority")
        self.stranger = Authority(scope.folder / "stranger")
        self.anonymous = self.authority.without_client(scope.folder / "anonymous")
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        tls = {key: str(self.authority.folder / name) for key, name in FILES.items()}
        setting = scope.configure({"0": {"device": f"tcp:127.0.0.1:{self.port}", "tls": tls}})
        self.server = harness.Server(scope, setting)
        self.server.share(image.path)
        harness.wait_until("the device listens", self.listens)

    def listens(self):
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def uri(self, certificates):
        return f"nbds://127.0.0.1:{self.port}/?tls-certificates={certificates}"

    def client(self):
        return raw.Client.over(socket.create_connection(("127.0.0.1", self.port)))

    def handle(self, certificates, tls=nbd.TLS_REQUIRE):
        handle = nbd.NBD()
        handle.set_tls(tls)
        handle.set_tls_certificates(str(certificates))
        return handle

    def works(self):
        """Whether one who may is served."""
        handle = self.handle(self.authority.folder)
        handle.connect_tcp("127.0.0.1", str(self.port))
        right = handle.pread(512, 0) == self.image.content[:512]
        handle.shutdown()
        return right


def test_libnbd(device):
    handle = device.handle(device.authority.folder)
    handle.connect_tcp("127.0.0.1", str(device.port))
    assert handle.get_tls_negotiated()
    assert handle.get_size() == len(device.image.content)
    assert handle.get_structured_replies_negotiated()
    assert handle.pread(1 << 20, 0) == device.image.content[: 1 << 20]
    handle.shutdown()


@pytest.mark.parametrize("connections", [1, 4])
def test_nbdcopy(device, scope, connections):
    copy = scope.folder / "copy"
    uri = device.uri(device.authority.folder)
    harness.run("nbdcopy", f"--connections={connections}", uri, copy)
    assert hashlib.sha256(copy.read_bytes()).digest() == hashlib.sha256(device.image.content).digest()


def test_nbdinfo_tells_that_it_is_tls(device):
    told = harness.run("nbdinfo", device.uri(device.authority.folder))
    assert "protocol: newstyle-fixed with TLS" in told


def qemu_img(device, certificates, *command):
    credentials = f"tls-creds-x509,id=tls0,endpoint=client,dir={certificates}"
    target = f"driver=nbd,host=127.0.0.1,port={device.port},export=0,tls-creds=tls0"
    return ("qemu-img", command[0], "--object", credentials, *command[1:], "--image-opts", target)


def test_qemu_img(device, scope):
    copy = scope.folder / "copy"
    # QEMU's own names of the files.
    certificates = device.authority.folder
    for name in ("cert", "key"):
        assert (certificates / f"client-{name}.pem").exists()
    harness.run(*qemu_img(device, certificates, "convert", "-O", "raw"), copy)
    assert copy.read_bytes() == device.image.content


def test_qemu_img_without_a_certificate_is_refused(device):
    ran = subprocess.run(qemu_img(device, device.anonymous, "info"), capture_output=True)
    assert ran.returncode != 0
    assert device.works()


@pytest.mark.parametrize("who", ["anonymous", "stranger"])
def test_a_client_without_a_certificate_of_the_authority_is_refused(device, who):
    certificates = device.anonymous if who == "anonymous" else strange_client(device)
    handle = device.handle(certificates)
    with pytest.raises(nbd.Error):
        handle.connect_tcp("127.0.0.1", str(device.port))
        # With TLS 1.3 a client learns of it only when it reads.
        handle.pread(512, 0)
    assert device.works()


def strange_client(device):
    """One that trusts our server, and shows a certificate of somebody else's authority."""
    folder = device.stranger.folder
    shutil.copy(device.authority.folder / "ca-cert.pem", folder)
    return folder


def test_downgrade_a_client_without_tls_learns_nothing(device):
    handle = nbd.NBD()
    with pytest.raises(nbd.Error, match="(?i)tls"):
        handle.connect_tcp("127.0.0.1", str(device.port))
    with device.client() as client:
        client.greet()
        for option in (raw.OPT_LIST, raw.OPT_GO, raw.OPT_INFO, 8, 99):
            data = raw.info_request() if option in (raw.OPT_GO, raw.OPT_INFO) else b""
            assert [kind for kind, _ in client.option(option, data)] == [raw.REP_ERR_TLS_REQD]
        client.send_option(raw.OPT_EXPORT_NAME, b"0")
        assert client.at_end()
    assert device.works()


def test_starttls_injection_bytes_in_the_clear_end_the_connection(device):
    with device.client() as client:
        client.greet()
        client.send(raw.option_bytes(raw.OPT_STARTTLS) + raw.option_bytes(raw.OPT_GO, raw.info_request()))
        assert client.at_end()
    assert device.works()


def starttls(device):
    """A connection on which TLS is to begin."""
    client = device.client()
    client.greet()
    assert client.option(raw.OPT_STARTTLS) == [(raw.REP_ACK, b"")]
    return client


@pytest.mark.parametrize("garbage", [b"\x16\x03\x01\xff\xff" + b"\0" * 600, b"IHAVEOPT" + b"\0" * 8, b"GET / HTTP/1.1\r\n\r\n"])
def test_garbage_as_tls_ends_its_connection_alone(device, garbage):
    with starttls(device) as client:
        client.send(garbage)
        client.socket.shutdown(socket.SHUT_WR)
        while client.socket.recv(1 << 16):
            pass
    assert device.works()


def test_starttls_twice_the_second_is_invalid_and_the_session_goes_on(device):
    context = ssl.create_default_context(cafile=device.authority.folder / "ca-cert.pem")
    certificates = device.authority.folder
    context.load_cert_chain(certificates / "client-cert.pem", certificates / "client-key.pem")
    with starttls(device) as clear:
        inside = context.wrap_socket(clear.socket, server_hostname="127.0.0.1")
        with raw.Client.over(inside) as client:
            assert [kind for kind, _ in client.option(raw.OPT_STARTTLS)] == [raw.REP_ERR_INVALID]
            assert client.option(raw.OPT_GO, raw.info_request())[-1] == (raw.REP_ACK, b"")


def test_strangers_neither_keep_the_device_in_use_nor_anybody_out(scope, image):
    device = Device(scope, image)
    strangers = [starttls(device) for _ in range(100)]
    assert device.works()
    harness.run(harness.PROGRAM, "eject", "0", env=device.server.setting.env)
    for stranger in strangers:
        stranger.socket.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_old_versions_of_tls_are_refused(device):
    for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
        with starttls(device) as client:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.set_ciphers("ALL:@SECLEVEL=0")
            context.minimum_version = context.maximum_version = version
            with pytest.raises(ssl.SSLError, match="(?i)alert"):
                context.wrap_socket(client.socket)
