// Command vault is the real Vault server, built from its Go modules for the tests
// of the mesh's Vault issuer: its core, its HTTP interface, file storage, the PKI
// secrets engine and the Kubernetes auth method. Vault's own command has every
// engine and cloud in it, which is half as many packages again to compile.
//
// It starts sealed and empty, and is initialised and unsealed over its API, as in
// production. It listens with TLS only.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	log "github.com/hashicorp/go-hclog"
	kubernetes "github.com/hashicorp/vault-plugin-auth-kubernetes"
	"github.com/hashicorp/vault/builtin/logical/pki"
	"github.com/hashicorp/vault/builtin/plugin"
	vaulthttp "github.com/hashicorp/vault/http"
	"github.com/hashicorp/vault/internalshared/configutil"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/hashicorp/vault/sdk/physical/file"
	"github.com/hashicorp/vault/vault"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "vault:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	listen := flag.String("listen", "127.0.0.1:8200", "address of the API")
	storage := flag.String("storage", "", "folder of the data")
	certificate := flag.String("tls-cert", "", "certificate of the API, PEM")
	key := flag.String("tls-key", "", "its key, PEM")
	flag.Parse()
	if *storage == "" {
		return errors.New("--storage is required")
	}
	pair, err := tls.LoadX509KeyPair(*certificate, *key)
	if err != nil {
		return fmt.Errorf("read --tls-cert and --tls-key: %w", err)
	}
	core, err := newCore(*storage)
	if err != nil {
		return err
	}
	listener, err := tls.Listen("tcp", *listen, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12})
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	server := &http.Server{
		Handler: vaulthttp.Handler.Handler(&vault.HandlerProperties{
			Core: core, ListenerConfig: &configutil.Listener{Type: "tcp", Address: *listen},
		}),
		ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: 5 * time.Minute,
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err = <-served:
	case <-ctx.Done():
		err = server.Close()
	}
	return errors.Join(err, core.Shutdown())
}

func newCore(storage string) (*vault.Core, error) {
	logger := log.New(&log.LoggerOptions{Level: log.Info, Output: os.Stderr})
	data, err := file.NewFileBackend(map[string]string{"path": storage}, logger)
	if err != nil {
		return nil, fmt.Errorf("open --storage: %w", err)
	}
	core, err := vault.NewCore(&vault.CoreConfig{
		Physical: data, StorageType: "file", Logger: logger, DisableMlock: true,
		BuiltinRegistry:    engines,
		LogicalBackends:    map[string]logical.Factory{"plugin": plugin.Factory},
		CredentialBackends: map[string]logical.Factory{"plugin": plugin.Factory},
	})
	if err != nil {
		return nil, fmt.Errorf("make the core: %w", err)
	}
	return core, nil
}

// A registry is Vault's catalogue of what is built in, by name.
type registry map[consts.PluginType]map[string]logical.Factory

var engines = registry{
	consts.PluginTypeSecrets:    {"pki": pki.Factory},
	consts.PluginTypeCredential: {"kubernetes": kubernetes.Factory},
}

// Contains reports whether there is such an engine.
func (r registry) Contains(name string, kind consts.PluginType) bool {
	_, ok := r[kind][name]
	return ok
}

// Get returns what makes the engine.
func (r registry) Get(name string, kind consts.PluginType) (func() (any, error), bool) {
	factory, ok := r[kind][name]
	return func() (any, error) { return factory, nil }, ok
}

// Keys lists the engines of a kind.
func (r registry) Keys(kind consts.PluginType) []string {
	var names []string
	for name := range r[kind] {
		names = append(names, name)
	}
	return names
}

// DeprecationStatus says that nothing here is deprecated.
func (r registry) DeprecationStatus(name string, kind consts.PluginType) (consts.DeprecationStatus, bool) {
	return consts.Supported, r.Contains(name, kind)
}

// IsBuiltinEntPlugin says that nothing here is of the enterprise edition.
func (r registry) IsBuiltinEntPlugin(string, consts.PluginType) bool { return false }
