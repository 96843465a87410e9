// Command vault is the real Vault server, built from its Go modules for the tests
// of the mesh's Vault issuer: its core, its HTTP interface, storage in files and
// Raft's, the PKI secrets engine and the Kubernetes auth method. Vault's own command
// has every engine and cloud in it, which is half as many packages again to compile.
//
// It starts sealed and empty, and is initialised, joined to others and unsealed over
// its API, as in production. It listens with TLS only.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"net"
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
	"github.com/hashicorp/vault/physical/raft"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/hashicorp/vault/sdk/physical"
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

// options are the command line.
type options struct {
	listen, storage, certificate, key string
	node, cluster                     string
	forward                           bool
}

func parse() (options, error) {
	var o options
	flag.StringVar(&o.listen, "listen", "127.0.0.1:8200", "address of the API")
	flag.StringVar(&o.storage, "storage", "", "folder of the data")
	flag.StringVar(&o.certificate, "tls-cert", "", "certificate of the API, PEM")
	flag.StringVar(&o.key, "tls-key", "", "its key, PEM")
	flag.StringVar(&o.node, "node", "", "name among several with Raft storage; empty for one alone, with files")
	flag.StringVar(&o.cluster, "cluster", "", "address for the others")
	flag.BoolVar(&o.forward, "forward", true, "forward calls to the active one; else callers are redirected to it")
	flag.Parse()
	if o.storage == "" {
		return o, errors.New("--storage is required")
	}
	return o, nil
}

func run(ctx context.Context) error {
	o, err := parse()
	if err != nil {
		return err
	}
	pair, err := tls.LoadX509KeyPair(o.certificate, o.key)
	if err != nil {
		return fmt.Errorf("read --tls-cert and --tls-key: %w", err)
	}
	core, err := newCore(o)
	if err != nil {
		return err
	}
	listener, err := tls.Listen("tcp", o.listen, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12})
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	server := &http.Server{
		Handler: handler(core, o), ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: 5 * time.Minute,
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

// handler is Vault's API.
func handler(core *vault.Core, o options) http.Handler {
	api := vaulthttp.Handler.Handler(&vault.HandlerProperties{
		Core: core, ListenerConfig: &configutil.Listener{Type: "tcp", Address: o.listen},
	})
	if o.forward {
		return api
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Header.Set(vaulthttp.NoRequestForwardingHeaderName, "true")
		api.ServeHTTP(w, r)
	})
}

func newCore(o options) (*vault.Core, error) {
	config := &vault.CoreConfig{
		StorageType: "file", DisableMlock: true,
		Logger:             log.New(&log.LoggerOptions{Level: log.Info, Output: os.Stderr}),
		BuiltinRegistry:    engines,
		LogicalBackends:    map[string]logical.Factory{"plugin": plugin.Factory},
		CredentialBackends: map[string]logical.Factory{"plugin": plugin.Factory},
	}
	if o.node != "" {
		return newMember(o, config)
	}
	var err error
	if config.Physical, err = file.NewFileBackend(map[string]string{"path": o.storage}, config.Logger); err != nil {
		return nil, fmt.Errorf("open --storage: %w", err)
	}
	core, err := vault.NewCore(config)
	if err != nil {
		return nil, fmt.Errorf("make the core: %w", err)
	}
	return core, nil
}

// newMember makes the core of one among several.
func newMember(o options, config *vault.CoreConfig) (*vault.Core, error) {
	address, err := net.ResolveTCPAddr("tcp", o.cluster)
	if err != nil {
		return nil, fmt.Errorf("read --cluster: %w", err)
	}
	data, err := raft.NewRaftBackend(map[string]string{
		"path": o.storage, "node_id": o.node,
		"autopilot_reconcile_interval": "1s",
		"autopilot_update_interval":    "1s",
	}, config.Logger)
	if err != nil {
		return nil, fmt.Errorf("open --storage: %w", err)
	}
	config.StorageType, config.Physical = "raft", data
	config.HAPhysical, _ = data.(physical.HABackend)
	config.RedirectAddr, config.ClusterAddr = "https://"+o.listen, "https://"+o.cluster
	core, err := vault.NewCore(config)
	if err != nil {
		return nil, fmt.Errorf("make the core: %w", err)
	}
	core.SetClusterListenerAddrs([]*net.TCPAddr{address})
	core.SetClusterHandler(vaulthttp.Handler.Handler(&vault.HandlerProperties{Core: core, ListenerConfig: &configutil.Listener{}}))
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
