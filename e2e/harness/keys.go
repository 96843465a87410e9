package harness

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/outrigger-mesh/outrigger/bootstrap"
)

// A Wanted is a private key that is looked for in places where it must not be.
type Wanted struct {
	Name    string
	needles [][]byte
}

// Want returns the needles of a key: its secret number as it is in DER, in hex,
// and in each of the ways in which base64 can cut it.
func Want(name string, key *ecdsa.PrivateKey) (Wanted, error) {
	secret, err := key.Bytes()
	if err != nil {
		return Wanted{}, fmt.Errorf("read the key of %s: %w", name, err)
	}
	w := Wanted{Name: name, needles: [][]byte{secret, []byte(hex.EncodeToString(secret)), bytes.ToUpper([]byte(hex.EncodeToString(secret)))}}
	for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		for before := range 3 {
			text := encoding.EncodeToString(append(make([]byte, before), secret...))
			// The first and the last letters depend on what stands around.
			text = text[(before*8+5)/6:]
			if (before+len(secret))%3 != 0 {
				text = text[:len(text)-1]
			}
			w.needles = append(w.needles, []byte(text))
		}
	}
	return w, nil
}

// Found returns the names of the keys that a text holds, also where lines are
// broken inside of them, as in PEM and in PEM inside of JSON.
func Found(text []byte, keys []Wanted) []string {
	var names []string
	joined := text
	for _, broken := range []string{"\r", "\n", `\r`, `\n`} {
		joined = bytes.ReplaceAll(joined, []byte(broken), nil)
	}
	for _, key := range keys {
		if slices.ContainsFunc(key.needles, func(needle []byte) bool {
			return bytes.Contains(text, needle) || bytes.Contains(joined, needle)
		}) {
			names = append(names, key.Name)
		}
	}
	return names
}

// WorkloadKeys returns the private keys of all proxies that run on this machine,
// by the public key. It needs root, which may look into every container.
func (c *Cluster) WorkloadKeys() (map[string]*ecdsa.PrivateKey, error) {
	if !c.Ours {
		return nil, errors.New("read the keys of workloads: the cluster's nodes are not this machine")
	}
	files, err := filepath.Glob("/proc/[0-9]*/root" + bootstrap.CertificateFile)
	if err != nil {
		return nil, fmt.Errorf("look for the keys of workloads: %w", err)
	}
	keys := map[string]*ecdsa.PrivateKey{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // its process has ended
		}
		if err != nil {
			return nil, fmt.Errorf("read the key of a workload: %w", err)
		}
		key, err := keyIn(text)
		if err != nil {
			return nil, fmt.Errorf("read the key in %s: %w", file, err)
		}
		public, err := x509.MarshalPKIXPublicKey(key.Public())
		if err != nil {
			return nil, fmt.Errorf("read the key in %s: %w", file, err)
		}
		keys[string(public)] = key
	}
	return keys, nil
}

// keyIn returns the key that a sidecar's file for Envoy holds.
func keyIn(file []byte) (*ecdsa.PrivateKey, error) {
	var secrets struct {
		Resources []struct {
			Certificate struct {
				Key struct {
					Inline string `json:"inline_string"`
				} `json:"private_key"`
			} `json:"tls_certificate"`
		} `json:"resources"`
	}
	if err := json.Unmarshal(file, &secrets); err != nil || len(secrets.Resources) != 1 {
		return nil, errors.Join(err, fmt.Errorf("%d secrets", len(secrets.Resources)))
	}
	block, _ := pem.Decode([]byte(secrets.Resources[0].Certificate.Key.Inline))
	if block == nil {
		return nil, errors.New("there is no key in it")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	ours, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("it is a %T", key)
	}
	return ours, nil
}

// Files calls look with every file that the machine keeps of its cluster in a
// folder of the cluster's state: pki/etcd has all that etcd ever wrote, logs what
// the components said, pods what containers did.
func (c *Cluster) Files(ctx context.Context, folder string, look func(name string, content []byte)) error {
	if !c.Ours {
		return errors.New("read the cluster's files: its nodes are not this machine")
	}
	root := filepath.Join(filepath.Dir(c.Kubeconfig), folder)
	return filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		if !entry.Type().IsRegular() {
			return nil
		}
		content, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // rotated away
		}
		if err != nil {
			return fmt.Errorf("read the cluster's files: %w", err)
		}
		name, err := filepath.Rel(root, path)
		look(name, content)
		return err
	})
}
