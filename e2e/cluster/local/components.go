package local

import (
	"bytes"
	"context"
	"embed"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/template"
)

//go:embed templates
var templates embed.FS

// What the cluster is made of and where it answers. The ranges are private ones
// that neither common home networks nor the defaults of other Kubernetes
// distributions use.
const (
	nodeName    = "outrigger" // of the cluster's only node
	bridgeName  = "outrigger0"
	networkName = "outrigger"

	podsIPv4     = "10.214.0.0/24"
	podsIPv6     = "fd4f:7574:7269:1::/64"
	bridgeIPv4   = "10.214.0.1"
	bridgeIPv6   = "fd4f:7574:7269:1::1"
	servicesIPv4 = "10.213.0.0/16"
	servicesIPv6 = "fd4f:7574:7269:2::/112"
	apiIPv4      = "10.213.0.1"
	dnsIPv4      = "10.213.0.10"
	apiPort      = 6443
)

// settings is what the configuration files are filled in with.
type settings struct {
	State, Run, Socket, PKI       string // paths
	Plugins                       string // folder of the CNI plugins
	Pause, CoreDNS                string // references of images
	Node, Network, Bridge, Cgroup string // names
	Address, DNS                  string // addresses of the node and of the name server
	Pods, Services                []string
	Resolvers                     []string // that names outside of the cluster are asked of
}

func (c Config) settings(dualStack bool, resolvers []string) settings {
	s := settings{
		State: c.State, Run: c.runFolder(), Socket: c.socket(), PKI: c.certificates(),
		Plugins: pluginFolder, Pause: pauseImage, CoreDNS: corednsImage,
		Node: nodeName, Network: networkName, Bridge: bridgeName, Cgroup: c.id(),
		Address: bridgeIPv4, DNS: dnsIPv4,
		Pods: []string{podsIPv4}, Services: []string{servicesIPv4},
		Resolvers: resolvers,
	}
	if dualStack {
		s.Pods = append(s.Pods, podsIPv6)
		s.Services = append(s.Services, servicesIPv6)
	}
	return s
}

// ClusterCIDR returns the pods' ranges as Kubernetes' flags take them.
func (s settings) ClusterCIDR() string { return strings.Join(s.Pods, ",") }

// nodeIPs returns the node's address in each family.
func (s settings) nodeIPs() string {
	if len(s.Pods) > 1 {
		return bridgeIPv4 + "," + bridgeIPv6
	}
	return bridgeIPv4
}

// render returns the configuration file of that name.
func (s settings) render(name string) ([]byte, error) {
	parsed, err := template.New(name).Option("missingkey=error").ParseFS(templates, "templates/"+name)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := parsed.Execute(&out, s); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// writeConfiguration stores all configuration files below the state folder.
func (c Config) writeConfiguration(s settings) error {
	folder := filepath.Join(c.State, "config")
	if err := os.MkdirAll(filepath.Join(folder, "cni"), 0o700); err != nil {
		return err
	}
	files := map[string]string{
		"containerd.toml": "containerd.toml",
		"cni.conflist":    "cni/10-outrigger.conflist",
		"kubelet.yaml":    "kubelet.yaml",
		"kube-proxy.yaml": "kube-proxy.yaml",
		"coredns.yaml":    "coredns.yaml",
	}
	for name, target := range files {
		content, err := s.render(name)
		if err != nil {
			return fmt.Errorf("render %s: %w", name, err)
		}
		if err := os.WriteFile(filepath.Join(folder, target), content, 0o600); err != nil {
			return err
		}
	}
	var resolv strings.Builder
	for _, resolver := range s.Resolvers {
		fmt.Fprintf(&resolv, "nameserver %s\n", resolver)
	}
	return os.WriteFile(filepath.Join(folder, "resolv.conf"), []byte(resolv.String()), 0o644)
}

// A component is a program of the cluster and how it is started.
type component struct {
	name  string
	flags []string
	env   []string
}

// foundation returns what runs before anybody can talk to the API server.
func (c Config) foundation(plan controlPlane, tools programs) []component {
	return []component{
		{name: "containerd", flags: []string{"--config", filepath.Join(c.State, "config", "containerd.toml")}, env: []string{
			// containerd looks for its shim there.
			"PATH=" + filepath.Dir(tools["containerd-shim-runc-v2"]) + ":" + os.Getenv("PATH"),
		}},
		{name: "etcd", flags: plan.etcdFlags()},
		{name: "kube-apiserver", flags: append(plan.apiServerFlags(), "--advertise-address="+plan.address)},
	}
}

// node returns what needs an API server.
func (c Config) node(plan controlPlane, s settings) []component {
	return []component{
		{name: "kube-controller-manager", flags: []string{
			"--kubeconfig=" + plan.kubeconfig("kube-controller-manager"),
			"--bind-address=" + plan.address,
			"--leader-elect=false",
			"--use-service-account-credentials=true",
			"--service-account-private-key-file=" + plan.file("tokens.key"),
			"--root-ca-file=" + plan.file("ca.crt"),
			"--cluster-signing-cert-file=" + plan.file("ca.crt"),
			"--cluster-signing-key-file=" + plan.file("ca.key"),
			"--service-cluster-ip-range=" + plan.services,
			// It asks for a token for each of its controllers before it starts them,
			// and would spend five seconds on waiting for its own rate limit.
			"--kube-api-qps=500", "--kube-api-burst=500",
			"--flex-volume-plugin-dir=" + filepath.Join(c.State, "kubelet", "volume-plugins"),
			// The node's only range is in its CNI configuration.
			"--allocate-node-cidrs=false",
		}},
		{name: "kube-scheduler", flags: []string{
			"--kubeconfig=" + plan.kubeconfig("kube-scheduler"),
			"--bind-address=" + plan.address,
			"--leader-elect=false",
		}},
		{name: "kubelet", flags: []string{
			"--config=" + filepath.Join(c.State, "config", "kubelet.yaml"),
			"--kubeconfig=" + plan.kubeconfig("kubelet"),
			"--hostname-override=" + nodeName,
			"--node-ip=" + s.nodeIPs(),
			"--root-dir=" + filepath.Join(c.State, "kubelet"),
		}},
		{name: "kube-proxy", flags: []string{"--config=" + filepath.Join(c.State, "config", "kube-proxy.yaml")}},
	}
}

// plan returns how the cluster's etcd and API server are started. The API
// server answers on the bridge only: it is for this machine and its pods.
func (c Config) plan(ctx context.Context, s settings) (controlPlane, error) {
	ports, err := freePorts(ctx, 2)
	if err != nil {
		return controlPlane{}, err
	}
	return controlPlane{
		folder:     c.certificates(),
		address:    s.Address,
		port:       apiPort,
		etcdClient: ports[0],
		etcdPeer:   ports[1],
		services:   strings.Join(s.Services, ","),
		hosts: []string{
			s.Address, apiIPv4, nodeName,
			"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
		},
	}, nil
}
