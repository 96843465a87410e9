package local

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// An APIServer is a running etcd and kube-apiserver, and nothing else: no
// controller acts on what is stored in it. A namespace gets no default service
// account, so a test that creates pods creates that first, since admission is
// the real one.
type APIServer struct {
	// Config reaches the API server as a cluster administrator.
	Config *rest.Config
	// Kubeconfig is the path of a kubeconfig that says the same.
	Kubeconfig string
	// Log is the path of the API server's log.
	Log string

	etcd, server *child
}

// WithAPIServer runs what needs an API server, such as all tests of a package, and
// returns the status with which the process is to exit: that of run, or 1 where the
// server does not start.
func WithAPIServer(ctx context.Context, run func(*APIServer) int) int {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	dir, err := os.MkdirTemp("", "apiserver")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	server, err := StartAPIServer(ctx, dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, "start an API server:", err)
		return 1
	}
	defer server.Stop()
	return run(server)
}

// StartAPIServer starts etcd and kube-apiserver on free ports of 127.0.0.1,
// with their data, certificates and logs in dir, and returns when the API
// server is ready. It builds them first if the cache does not hold them. More
// flags for kube-apiserver may be given; one that is given twice counts as
// given last. Both processes end at the latest with ctx or with the calling
// process.
func StartAPIServer(ctx context.Context, dir string, flags ...string) (*APIServer, error) {
	config, err := Config{}.complete()
	if err != nil {
		return nil, err
	}
	tools, err := config.build(ctx, "etcd", "kube-apiserver")
	if err != nil {
		return nil, err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	ports, err := freePorts(ctx, 3)
	if err != nil {
		return nil, err
	}
	plan := controlPlane{
		folder:     dir,
		address:    "127.0.0.1",
		port:       ports[0],
		etcdClient: ports[1],
		etcdPeer:   ports[2],
		services:   "10.0.0.0/24",
		hosts:      []string{"localhost", "127.0.0.1", "10.0.0.1"},
	}
	if err := plan.writeCertificates(); err != nil {
		return nil, fmt.Errorf("write certificates to %s: %w", dir, err)
	}
	a := &APIServer{Kubeconfig: plan.kubeconfig("admin"), Log: filepath.Join(dir, "kube-apiserver.log")}
	if a.etcd, err = startChild(ctx, tools["etcd"], filepath.Join(dir, "etcd.log"), plan.etcdFlags()); err != nil {
		return nil, err
	}
	// The address that Services send to may not be loopback. Nothing runs here
	// that would use it, so it is one of those kept for documentation.
	flags = slices.Concat(plan.apiServerFlags(), []string{"--advertise-address=192.0.2.1"}, flags)
	if a.server, err = startChild(ctx, tools["kube-apiserver"], a.Log, flags); err != nil {
		a.Stop()
		return nil, err
	}
	if a.Config, err = waitForAPIServer(ctx, a.Kubeconfig, a.server.failed, a.etcd.failed); err != nil {
		a.Stop()
		return nil, err
	}
	return a, nil
}

// Stop ends both processes and returns when they are gone. Their files stay.
func (a *APIServer) Stop() {
	if a.server != nil {
		a.server.stop()
	}
	a.etcd.stop()
}

// waitForAPIServer returns a client configuration read from kubeconfig as soon
// as the API server that it names is ready and has made the namespaces that
// every cluster has. It gives up early when one of failed returns an error.
func waitForAPIServer(ctx context.Context, kubeconfig string, failed ...func() error) (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, err
	}
	// A test is one client among few, and its own rate limit would only slow it down.
	config.QPS = -1
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, err
	}
	var last error
	err = wait.PollUntilContextTimeout(ctx, 100*time.Millisecond, 2*time.Minute, true, func(ctx context.Context) (bool, error) {
		if err := firstError(failed); err != nil {
			return false, err
		}
		last = apiServerReady(ctx, client, config.Host)
		return last == nil, nil
	})
	if err != nil {
		return nil, fmt.Errorf("wait for the API server: %w", errors.Join(err, last))
	}
	return config, nil
}

// apiServerReady returns nil if the API server at url can be used, and why not
// otherwise.
func apiServerReady(ctx context.Context, client *http.Client, url string) error {
	for _, path := range []string{"/readyz", "/api/v1/namespaces/default", "/api/v1/namespaces/kube-system"} {
		if err := getOK(ctx, client, url+path); err != nil {
			return err
		}
	}
	return nil
}

func firstError(checks []func() error) error {
	for _, check := range checks {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

// getOK returns nil if url answers 200.
func getOK(ctx context.Context, client *http.Client, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", url, response.Status)
	}
	return nil
}

// A controlPlane says how etcd and kube-apiserver are started.
type controlPlane struct {
	folder               string   // of certificates, kubeconfigs and data
	address              string   // that the API server listens on and is reached by
	port                 int      // of the API server
	etcdClient, etcdPeer int      // ports of etcd on 127.0.0.1
	services             string   // ranges of ClusterIPs
	hosts                []string // names in the API server's certificate
}

func (p controlPlane) file(name string) string       { return filepath.Join(p.folder, name) }
func (p controlPlane) kubeconfig(name string) string { return p.file(name + ".kubeconfig") }
func (p controlPlane) server() string {
	return "https://" + net.JoinHostPort(p.address, strconv.Itoa(p.port))
}

func (p controlPlane) etcdFlags() []string {
	client := fmt.Sprintf("https://127.0.0.1:%d", p.etcdClient)
	peer := fmt.Sprintf("http://127.0.0.1:%d", p.etcdPeer)
	return []string{
		"--name=default",
		"--data-dir=" + p.file("etcd"),
		"--listen-client-urls=" + client,
		"--advertise-client-urls=" + client,
		"--listen-peer-urls=" + peer,
		"--initial-advertise-peer-urls=" + peer,
		"--initial-cluster=default=" + peer,
		// Whoever reaches etcd owns the cluster, so it takes nobody but the API server.
		"--cert-file=" + p.file("etcd.crt"),
		"--key-file=" + p.file("etcd.key"),
		"--client-cert-auth=true",
		"--trusted-ca-file=" + p.file("etcd-ca.crt"),
		// The data does not survive the cluster, so there is nothing to save by waiting for the disk.
		"--unsafe-no-fsync=true",
		"--log-level=warn",
	}
}

func (p controlPlane) apiServerFlags() []string {
	return []string{
		"--etcd-servers=" + fmt.Sprintf("https://127.0.0.1:%d", p.etcdClient),
		"--etcd-cafile=" + p.file("etcd-ca.crt"),
		"--etcd-certfile=" + p.file("etcd.crt"),
		"--etcd-keyfile=" + p.file("etcd.key"),
		"--bind-address=" + p.address,
		"--secure-port=" + strconv.Itoa(p.port),
		"--tls-cert-file=" + p.file("apiserver.crt"),
		"--tls-private-key-file=" + p.file("apiserver.key"),
		"--client-ca-file=" + p.file("ca.crt"),
		"--kubelet-certificate-authority=" + p.file("ca.crt"),
		"--kubelet-client-certificate=" + p.file("apiserver.crt"),
		"--kubelet-client-key=" + p.file("apiserver.key"),
		// The node has no name that resolves, so its address must be asked for first.
		"--kubelet-preferred-address-types=InternalIP",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + p.file("tokens.crt"),
		"--service-account-signing-key-file=" + p.file("tokens.key"),
		"--service-cluster-ip-range=" + p.services,
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--allow-privileged=true",
		"--profiling=false",
	}
}

// writeCertificates makes a new authority and everything that it signs, the
// kubeconfigs too.
func (p controlPlane) writeCertificates() error {
	if err := os.MkdirAll(p.folder, 0o700); err != nil {
		return err
	}
	etcd, err := newAuthority("etcd")
	if err != nil {
		return err
	}
	cluster, err := newAuthority("kubernetes")
	if err != nil {
		return err
	}
	admins := []string{"system:masters"}
	files := map[string]func() (pair, error){
		"ca":      cluster.pair,
		"etcd-ca": etcd.pair,
		"etcd":    func() (pair, error) { return etcd.issue(subject{name: "etcd", hosts: []string{"127.0.0.1"}}) },
		"tokens":  newSigningKey,
		"apiserver": func() (pair, error) {
			return cluster.issue(subject{name: "kube-apiserver", groups: admins, hosts: p.hosts})
		},
		"kubelet": func() (pair, error) {
			return cluster.issue(subject{name: nodeName, hosts: []string{nodeName, p.address}})
		},
	}
	for name, issue := range files {
		issued, err := issue()
		if err != nil {
			return err
		}
		if err := issued.write(p.folder, name); err != nil {
			return err
		}
	}
	for name, who := range map[string]subject{
		"admin":                   {name: "admin", groups: admins},
		"kube-controller-manager": {name: "system:kube-controller-manager"},
		"kube-scheduler":          {name: "system:kube-scheduler"},
		"kube-proxy":              {name: "system:kube-proxy"},
		"kubelet":                 {name: "system:node:" + nodeName, groups: []string{"system:nodes"}},
	} {
		if err := cluster.writeKubeconfig(p.kubeconfig(name), p.server(), who); err != nil {
			return err
		}
	}
	return nil
}

// freePorts returns n different ports of 127.0.0.1 that nobody listens on. They
// are below the range that the kernel takes the local ports of connections
// from, or one of those might get in between before the port is used.
func freePorts(ctx context.Context, n int) ([]int, error) {
	var ports []int
	for range 1000 {
		port := 20000 + rand.IntN(10000)
		listener, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			continue
		}
		// Kept open until all are found, so that no port is found twice.
		defer listener.Close()
		if ports = append(ports, port); len(ports) == n {
			return ports, nil
		}
	}
	return nil, errors.New("find free ports on 127.0.0.1 between 20000 and 30000: none")
}
