package local

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
)

// A Vault is a running Vault server, initialised and unsealed, with TLS below an
// authority of its own and its data in files.
type Vault struct {
	// Address is its URL.
	Address string
	// CA is the authority of its TLS certificate, PEM.
	CA []byte
	// Token is the root token.
	Token string
	// Log is the path of its log.
	Log string

	program, listen, folder string
	member                  []string // flags of one among several
	unsealKey               string
	client                  *http.Client
	server                  *child
}

// StartVault starts Vault on a free port of the host, with its data, certificates
// and log in dir, and returns when it can be used. It builds it first if the cache
// does not hold it. The process ends at the latest with ctx or with the calling
// process.
func StartVault(ctx context.Context, dir, host string) (*Vault, error) {
	ca, err := newAuthority("vault")
	if err != nil {
		return nil, err
	}
	v, err := newVault(ctx, dir, host, ca)
	if err != nil {
		return nil, err
	}
	if err := v.Start(ctx); err != nil {
		return nil, err
	}
	if err := v.initialise(ctx); err != nil {
		v.Stop()
		return nil, fmt.Errorf("initialise Vault: %w", err)
	}
	return v, nil
}

// newVault makes everything of a server but its process.
func newVault(ctx context.Context, dir, host string, ca *authority) (*Vault, error) {
	config, err := Config{}.complete()
	if err != nil {
		return nil, err
	}
	tools, err := config.build(ctx, "vault")
	if err != nil {
		return nil, err
	}
	ports, err := freePorts(ctx, 1)
	if err != nil {
		return nil, err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	v := &Vault{
		program: tools["vault"], folder: dir, Log: filepath.Join(dir, "vault.log"),
		listen: net.JoinHostPort(host, strconv.Itoa(ports[0])),
	}
	v.Address = "https://" + v.listen
	if err := v.secure(host, ca); err != nil {
		return nil, fmt.Errorf("write certificates to %s: %w", dir, err)
	}
	return v, nil
}

// secure makes the certificate of the server, and the client that trusts it.
func (v *Vault) secure(host string, ca *authority) error {
	if err := os.MkdirAll(filepath.Join(v.folder, vaultData), 0o700); err != nil {
		return err
	}
	server, err := ca.issue(subject{name: "vault", hosts: []string{host, "vault.test"}})
	if err != nil {
		return err
	}
	v.CA = ca.pem
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	v.client = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}}
	return server.write(v.folder, "vault")
}

// vaultData is the folder of a server's data below its own.
const vaultData = "data"

// Start starts the server again after Stop: with its data, and sealed. It returns
// when it answers.
func (v *Vault) Start(ctx context.Context) error {
	server, err := startChild(ctx, v.program, v.Log, append([]string{
		"--listen=" + v.listen, "--storage=" + filepath.Join(v.folder, vaultData),
		"--tls-cert=" + filepath.Join(v.folder, "vault.crt"), "--tls-key=" + filepath.Join(v.folder, "vault.key"),
	}, v.member...))
	if err != nil {
		return err
	}
	v.server = server
	var last error
	err = wait.PollUntilContextTimeout(ctx, 50*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
		if err := v.server.failed(); err != nil {
			return false, err
		}
		_, last = v.Call(ctx, http.MethodGet, "sys/seal-status", nil)
		return last == nil, nil
	})
	if err != nil {
		v.Stop()
		return fmt.Errorf("wait for Vault: %w", errors.Join(err, last))
	}
	return nil
}

// Stop kills the server. Its data stays.
func (v *Vault) Stop() { v.server.stop() }

func (v *Vault) initialise(ctx context.Context) error {
	answer, err := v.Call(ctx, http.MethodPost, "sys/init", map[string]any{"secret_shares": 1, "secret_threshold": 1})
	if err != nil {
		return err
	}
	var made struct {
		Keys  []string `json:"keys_base64"`
		Token string   `json:"root_token"`
	}
	if err := json.Unmarshal(answer, &made); err != nil || len(made.Keys) != 1 {
		return errors.New("the answer holds no key")
	}
	v.unsealKey, v.Token = made.Keys[0], made.Token
	return v.Unseal(ctx)
}

// Seal makes Vault forget the key of its data, so that it answers nothing more.
func (v *Vault) Seal(ctx context.Context) error {
	_, err := v.Call(ctx, http.MethodPost, "sys/seal", nil)
	return err
}

// Unseal ends a seal, and returns when Vault answers again.
func (v *Vault) Unseal(ctx context.Context) error { return v.unseal(ctx, "sys/health") }

// unseal ends a seal, and returns when Vault answers at health without an error.
func (v *Vault) unseal(ctx context.Context, health string) error {
	if _, err := v.Call(ctx, http.MethodPost, "sys/unseal", map[string]any{"key": v.unsealKey}); err != nil {
		return err
	}
	var last error
	err := wait.PollUntilContextTimeout(ctx, 50*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
		_, last = v.Call(ctx, http.MethodGet, health, nil)
		return last == nil, nil
	})
	return errors.Join(err, last)
}

// Call asks Vault as its root, and returns the answer. A status from 400 on is an
// error with Vault's words.
func (v *Vault) Call(ctx context.Context, method, path string, body any) ([]byte, error) {
	text, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequestWithContext(ctx, method, v.Address+"/v1/"+path, bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	request.Header.Set("X-Vault-Token", v.Token)
	response, err := v.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	if response.StatusCode >= http.StatusBadRequest {
		return nil, fmt.Errorf("%s %s: %s: %s", method, path, response.Status, bytes.TrimSpace(answer))
	}
	return answer, nil
}

// An ask is one call of a sequence.
type ask struct {
	path string
	body map[string]any
}

func (v *Vault) ask(ctx context.Context, asks ...ask) error {
	for _, a := range asks {
		if _, err := v.Call(ctx, http.MethodPost, a.path, a.body); err != nil {
			return err
		}
	}
	return nil
}

// engine makes a PKI engine whose certificates may last ten years.
func engine(mount string) ask {
	return ask{"sys/mounts/" + mount, map[string]any{"type": "pki", "config": map[string]any{"max_lease_ttl": "87600h"}}}
}

// MakePKI makes a secrets engine at mount with a root of its own, and in it a role
// as MakeRole does.
func (v *Vault) MakePKI(ctx context.Context, mount, role, trustDomain string, change map[string]any) error {
	root := ask{mount + "/root/generate/internal", map[string]any{"common_name": "Root of " + mount, "ttl": "87600h", "key_type": "ec", "key_bits": 256}}
	if err := v.ask(ctx, engine(mount), root); err != nil {
		return err
	}
	return v.MakeRole(ctx, mount, role, trustDomain, change)
}

// MakeRole makes the role of docs/certificates.md for a trust domain, or makes it
// what that says. What is given changes the role.
func (v *Vault) MakeRole(ctx context.Context, mount, role, trustDomain string, change map[string]any) error {
	settings := map[string]any{
		"allowed_domains": trustDomain, "allow_subdomains": true, "allow_ip_sans": false, "allow_localhost": false,
		"allowed_uri_sans": "spiffe://" + trustDomain + "/ns/*/sa/*", "allowed_serial_numbers": "*",
		"use_csr_common_name": false, "use_csr_sans": false, "require_cn": false,
		"key_type": "ec", "key_bits": 256, "key_usage": "DigitalSignature", "server_flag": true, "client_flag": true,
		"max_ttl": "720h", "no_store": true,
	}
	maps.Copy(settings, change)
	return v.ask(ctx, ask{mount + "/roles/" + role, settings})
}

// MakeIntermediate makes a secrets engine at mount below the one at parent, whose
// root it does not know.
func (v *Vault) MakeIntermediate(ctx context.Context, parent, mount string) error {
	if err := v.ask(ctx, engine(mount)); err != nil {
		return err
	}
	var made struct {
		Data struct {
			CSR         string `json:"csr"`
			Certificate string `json:"certificate"`
		} `json:"data"`
	}
	for _, a := range []ask{
		{mount + "/intermediate/generate/internal", map[string]any{"common_name": "Intermediate " + mount, "key_type": "ec", "key_bits": 256}},
		{parent + "/root/sign-intermediate", map[string]any{"ttl": "43800h"}},
	} {
		if made.Data.CSR != "" {
			a.body["csr"] = made.Data.CSR
		}
		answer, err := v.Call(ctx, http.MethodPost, a.path, a.body)
		if err != nil {
			return err
		}
		if err := json.Unmarshal(answer, &made); err != nil {
			return fmt.Errorf("read the answer of %s: %w", a.path, err)
		}
	}
	return v.ask(ctx, ask{mount + "/intermediate/set-signed", map[string]any{"certificate": made.Data.Certificate}})
}

// MakeToken makes a token that may sign with a role and nothing else, and returns
// it. Settings are those of auth/token/create.
func (v *Vault) MakeToken(ctx context.Context, mount, role string, settings map[string]any) (string, error) {
	policy, err := v.MakePolicy(ctx, mount, role)
	if err != nil {
		return "", err
	}
	body := map[string]any{"policies": []string{policy}, "no_parent": true}
	maps.Copy(body, settings)
	answer, err := v.Call(ctx, http.MethodPost, "auth/token/create", body)
	if err != nil {
		return "", err
	}
	var made struct {
		Auth struct {
			Token string `json:"client_token"`
		} `json:"auth"`
	}
	if err := json.Unmarshal(answer, &made); err != nil || made.Auth.Token == "" {
		return "", errors.New("make a token: the answer holds none")
	}
	return made.Auth.Token, nil
}

// MakePolicy makes the policy of docs/certificates.md for a role, and returns its
// name.
func (v *Vault) MakePolicy(ctx context.Context, mount, role string) (string, error) {
	name := "sign-" + role
	_, err := v.Call(ctx, http.MethodPost, "sys/policies/acl/"+name, map[string]any{
		"policy": `path "` + mount + "/sign/" + role + `" { capabilities = ["update"] }`,
	})
	return name, err
}

// A KubernetesAuth says whom an auth method of Vault's lets in.
type KubernetesAuth struct {
	// Host is the API server's URL, CA its authority, Reviewer a token that may make
	// TokenReviews there.
	Host, CA, Reviewer string
	// Role is for the service account, which gets the policy for the TTL.
	Role, Namespace, ServiceAccount, Policy, TTL string
}

// MakeKubernetesAuth makes an auth method at mount, for tokens of the audience
// vault.
func (v *Vault) MakeKubernetesAuth(ctx context.Context, mount string, k KubernetesAuth) error {
	return v.ask(ctx,
		ask{"sys/auth/" + mount, map[string]any{"type": "kubernetes"}},
		ask{"auth/" + mount + "/config", map[string]any{"kubernetes_host": k.Host, "kubernetes_ca_cert": k.CA, "token_reviewer_jwt": k.Reviewer, "disable_local_ca_jwt": true}},
		ask{"auth/" + mount + "/role/" + k.Role, map[string]any{
			"bound_service_account_names": k.ServiceAccount, "bound_service_account_namespaces": k.Namespace, "audience": "vault",
			"token_policies": k.Policy, "token_ttl": k.TTL,
		}},
	)
}
