package main

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"regexp"
	"syscall"
	"testing"
	"time"

	"ganglion/internal/hubtest"
	"ganglion/internal/hubtest/auth"
)

var retryIn = regexp.MustCompile(` retry=(\S+)`)

// checkRetry: the line says when the device is dialled again, and that is not
// sooner than least.
func checkRetry(t *testing.T, line string, least time.Duration) {
	t.Helper()
	m := retryIn.FindStringSubmatch(line)
	if m == nil {
		t.Errorf("no retry in %s", line)
		return
	}
	if d, err := time.ParseDuration(m[1]); err != nil || d < least {
		t.Errorf("retry in %s (%v), want at least %s: %s", m[1], err, least, line)
	}
}

// refusedWait is the least that follows a refusal; a fault of the network has
// none.
const refusedWait = 2500 * time.Millisecond

// TestBadCredentials: what is wrong with a device's files is named with the
// file, what was found and the remedy, and tried again at the slow end; the
// devices beside it do not notice.
func TestBadCredentials(t *testing.T) {
	t.Parallel()
	s := newSite(t, "good")
	old, future := time.Date(2010, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2048, 1, 1, 0, 0, 0, 0, time.UTC)
	issue := func(id, cn string, o auth.LeafOptions) auth.Leaf {
		leaf, err := s.ca.IssueWith(cn, o)
		s.must(err)
		s.add(id, leaf.CertPEM, leaf.KeyPEM)
		return leaf
	}
	issue("self-signed", "self-signed", auth.LeafOptions{SelfIssuer: "self-signed"})
	issue("without-aki", "without-aki", auth.LeafOptions{NoAuthorityKeyID: true})
	issue("other-name", "somebody", auth.LeafOptions{})
	mine := issue("other-key", "other-key", auth.LeafOptions{})
	s.add("other-key", mine.CertPEM, issue("other-key", "other-key", auth.LeafOptions{}).KeyPEM)
	s.add("damaged", []byte("not PEM\n"), mine.KeyPEM)
	issue("expired", "expired", auth.LeafOptions{NotAfter: old})
	for id, o := range map[string]auth.LeafOptions{"stored": {NotAfter: old}, "future": {NotBefore: future}} {
		s.must(s.registry.StoreCertificate(id, issue(id, id, o).Cert.Certificate[0]))
	}

	g := s.run()
	bad := []struct {
		id   string
		says []string
	}{
		{"self-signed", []string{"cause=identity", "self-signed.pem", "self-signed", "issue it from a CA"}},
		{"without-aki", []string{"cause=identity", "without-aki.pem", "no AuthorityKeyIdentifier", "authorityKeyIdentifier=keyid"}},
		{"other-name", []string{"cause=identity", "other-name.pem", "somebody", "issue one, or rename both files"}},
		{"other-key", []string{"cause=identity", "other-key-key.pem", "is not the key of the certificate in", "put the pair that was made together"}},
		{"damaged", []string{"cause=identity", "damaged.pem", "no PEM text", "put the device's certificate here"}},
		{"unknown", []string{"cause=identity", "no unknown.pem and no unknown-key.pem in " + s.dir}},
		{"expired", []string{"cause=certificate", "TLS alert"}},
	}
	for _, c := range bad {
		s.switchOn(s.device(g, c.id).Run)
		checkRetry(t, g.until(append(c.says, "level=WARN", "device="+c.id+" ")...), refusedWait)
	}
	// NervesHub does not look at the dates of a certificate that is stored; with
	// a clock in 1970 every certificate is of the future.
	for id, says := range map[string][]string{
		"stored": {"stored.pem", "expired at 2010-01-01", "issue a new one for the same key"},
		"future": {"future.pem", "valid only from 2048-01-01", "set the clock"},
		"good":   nil,
	} {
		s.switchOn(s.device(g, id).Run)
		s.until(id, "a join", patience, isJoined)
		if says != nil {
			g.until(append(says, "level=WARN", "device="+id+" ")...)
		}
	}
	for _, c := range bad {
		g.twice("link down", "device="+c.id+" ")
	}
}

// TestRefusedByHub: every way in which NervesHub turns a device away has its
// word in the log and its pace, and concerns nobody else.
func TestRefusedByHub(t *testing.T) {
	ways := map[hubtest.Refusal]string{
		hubtest.Refuse401: "unauthorized", hubtest.Refuse403: "forbidden", hubtest.Refuse503: "unavailable", hubtest.RefuseAlert: "certificate",
		hubtest.RefuseShed: "shed", hubtest.RefuseJoin: "join_refused", hubtest.RefuseEntry: "join_refused",
	}
	ids, names := []string{"good"}, map[hubtest.Refusal]string{}
	for i, how := range hubtest.Refusals {
		names[how] = "probe-" + string(rune('a'+i))
		ids = append(ids, names[how])
	}
	s := newSite(t, ids...)
	g := s.run()
	for _, how := range hubtest.Refusals {
		s.hub.Refuse(names[how], how, 1000)
		s.switchOn(s.device(g, names[how]).Run)
	}
	for _, how := range hubtest.Refusals {
		line := g.until("link down", "device="+names[how]+" ", "cause="+ways[how])
		switch how {
		case hubtest.Refuse503: // like a fault, unless it persists
		case hubtest.RefuseShed:
			checkRetry(t, line, time.Second)
		default:
			checkRetry(t, line, refusedWait)
		}
	}
	s.switchOn(s.device(g, "good").Run)
	s.until("good", "a join", patience, isJoined)
}

// TestUntrustedHub: a server whose certificate is not to be trusted is told
// nothing, and named.
func TestUntrustedHub(t *testing.T) {
	past := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name, host string
		from       time.Time
		file       string
		says       string
	}{
		{"another authority", "127.0.0.1", past, "other-root.pem", "certificate signed by unknown authority"},
		{"another host", "192.0.2.1", past, "hub-root.pem", "certificate is valid for 192.0.2.1, not 127.0.0.1"},
		{"a clock in 1970", "127.0.0.1", time.Date(2048, 1, 1, 0, 0, 0, 0, time.UTC), "hub-root.pem", "certificate has expired or is not yet valid"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := emptySite(t)
			server, root := serverFrom(t, c.host, c.from)
			_, other := serverFrom(t, c.host, c.from)
			s.write("hub-root.pem", root)
			s.write("other-root.pem", other)
			s.serve(server)
			s.issue("probe-1")
			g := s.run("GANGLION_HUB_CA_FILE=" + c.file)
			s.switchOn(s.device(g, "probe-1").Run)
			checkRetry(t, g.until("level=WARN", "link down", "device=probe-1 ", "cause=server_cert", c.says), refusedWait)
			if d, _ := s.hub.Device("probe-1"); d.Connections != 0 {
				t.Errorf("connected nevertheless: %s", summary(d))
			}
		})
	}
}

// serverFrom makes a server certificate for an address that is valid from a
// moment on, and its root as PEM.
func serverFrom(t *testing.T, host string, from time.Time) (server tls.Certificate, root string) {
	t.Helper()
	ca, err := auth.NewCA("Test Server CA")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(ca.CertPEM, ca.KeyPEM)
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: from, NotAfter: from.AddDate(100, 0, 0),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, IPAddresses: []net.IP{net.ParseIP(host)}}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca.Certificate, pair.Leaf.PublicKey, pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: pair.PrivateKey}, string(ca.CertPEM)
}

// TestHubAway: without NervesHub the gateway is ready for its devices, tries
// again, and ends when it is told to.
func TestHubAway(t *testing.T) {
	s := newSite(t, "probe-1")
	g := s.run("GANGLION_HUB_URL=wss://127.0.0.1:1/device-socket/websocket")
	s.switchOn(s.device(g, "probe-1").Run)
	g.twice("link down", "device=probe-1 ", "cause=transport", "127.0.0.1:1", "connection refused")
	for _, page := range []string{"/healthz", "/readyz"} {
		if status, body := g.get(page); status != 200 {
			t.Errorf("%s: %d %s", page, status, body)
		}
	}
	g.signal(syscall.SIGTERM)
	if code := g.exit(patience); code != 0 {
		t.Errorf("ended with %d", code)
	}
}
