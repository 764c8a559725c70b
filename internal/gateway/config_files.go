package gateway

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"reflect"
	"strings"

	"ganglion/identity"
)

// maxNamedFile is the largest file that a configuration may name, bytes: the
// public CA bundles are a quarter of it.
const maxNamedFile = 1 << 20

// readFiles looks at every file and directory that cfg names, and takes the
// secrets over. Fields that were already refused are left alone.
func (r *report) readFiles(cfg *Config) {
	held := map[string][]byte{} // by field
	leaves(reflect.ValueOf(cfg).Elem(), "", func(l leaf) {
		name := l.value.String()
		if l.kind == "" || name == "" || r.refused(l.field) {
			return
		}
		data, err := readNamed(l.kind, name)
		if err != nil {
			r.refuse(l.field, "%v", err)
			return
		}
		held[l.field] = data
	})
	r.takeSecrets(&cfg.Identity, "identity", held)
	for _, name := range cfg.classNames() {
		if id := cfg.Classes[name].Identity; id != nil {
			r.takeSecrets(id, child(child("classes", name), "identity"), held)
		}
	}
	if e := cfg.MQTT.External; e != nil {
		e.Password = secret(held["mqtt.external.password_file"])
		r.checkPair("mqtt.external", held)
	}
}

// takeSecrets keeps a shared secret, if it is one.
func (r *report) takeSecrets(id *Identity, field string, held map[string][]byte) {
	s := id.SharedSecret
	if s == nil {
		return
	}
	at := child(field, "shared_secret")
	data, ok := held[child(at, "secret_file")]
	if !ok {
		return
	}
	s.Secret = secret(data)
	if keyMistake(s.Key) != "" {
		return // told by check
	}
	if _, err := identity.NewSharedSecret(s.Key, string(s.Secret)); err != nil {
		r.refuse(child(at, "secret_file"), "%s", strings.TrimPrefix(err.Error(), "identity: shared secret: "))
	}
}

// secret is the text of a secret file without its line end.
func secret(data []byte) Secret { return Secret(strings.TrimRight(string(data), "\r\n")) }

// checkPair refuses a key that is not its certificate's.
func (r *report) checkPair(section string, held map[string][]byte) {
	cert, hasCert := held[child(section, "cert_file")]
	key, hasKey := held[child(section, "key_file")]
	if !hasCert || !hasKey {
		return
	}
	if _, err := tls.X509KeyPair(cert, key); err != nil {
		r.refuse(child(section, "key_file"), "does not go with cert_file (%s); put the pair that was made together",
			strings.TrimPrefix(err.Error(), "tls: "))
	}
}

// readNamed checks what is at name, and reads it if it is a file. Kinds:
//
//	made    a directory, or nothing yet
//	dir     a directory
//	pem     a file
//	ca      a file with at least one certificate
//	key     a file for nobody else
//	secret  a file for nobody else, not empty
func readNamed(kind, name string) ([]byte, error) {
	info, err := os.Stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist) && kind == "made":
		return nil, nil
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("no such file or directory: %s; create it, or correct the path (relative paths begin at the configuration file)", quote(name))
	case err != nil:
		return nil, fmt.Errorf("%s cannot be looked at (%v); let the user the gateway runs as read it", quote(name), cause(err))
	case kind == "made" || kind == "dir":
		if !info.IsDir() {
			return nil, fmt.Errorf("%s is not a directory; name a directory", quote(name))
		}
		return nil, nil
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a regular file; name a file", quote(name))
	case info.Size() > maxNamedFile:
		return nil, fmt.Errorf("%s has %d bytes, more than %d; is it the right file?", quote(name), info.Size(), maxNamedFile)
	case (kind == "key" || kind == "secret") && info.Mode().Perm()&^0o600 != 0:
		return nil, fmt.Errorf("%s has mode %#o, open to others; chmod 600 it", quote(name), info.Mode().Perm())
	}
	data, err := readUpTo(name, maxNamedFile)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s cannot be read (%v); let the user the gateway runs as read it", quote(name), cause(err))
	case kind == "ca" && !x509.NewCertPool().AppendCertsFromPEM(data):
		return nil, fmt.Errorf("%s holds no certificate; put PEM there (-----BEGIN CERTIFICATE-----)", quote(name))
	case kind == "secret" && len(secret(data)) == 0:
		return nil, fmt.Errorf("%s is empty; put the secret there, on one line", quote(name))
	}
	return data, nil
}

func readUpTo(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit))
}
