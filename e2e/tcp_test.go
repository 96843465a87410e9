//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestTCPIsOpenToWhomAPolicyNames is OSM's row 41, with SMI policy and in
// permissive mode.
func TestTCPIsOpenToWhomAPolicyNames(t *testing.T) {
	t.Parallel()
	ns, callers := namespace(t, "server", inMesh), namespace(t, "callers", inMesh)
	server := app{name: "server", args: []string{"tcp-echo", "--drain=0s"}, ports: map[string]int32{"own": 9000}}
	server.create(t, ns)
	apply(t, `
apiVersion: v1
kind: Service
metadata: {namespace: %s, name: declared}
spec:
  selector: {app: server}
  ports: [{name: own, port: 8078, targetPort: 9000, appProtocol: tcp}]
`, ns)
	client := caller("client").run(t, callers)
	ready(t, ns, "app=server")
	url := "tcp://" + service(ns, "declared") + ":8078"
	consecutive(t, client, url, "error", 5)
	allowTCP(t, ns, "server", "9000", callers+"/client")
	consecutive(t, client, url, "200", 5)
	// Without a word on the Service the protocol is found out, and is TCP.
	consecutive(t, client, "tcp://"+service(ns, "server")+":9000", "200", 5)
	withdraw(t, target(ns, "server", "TCPRoute/server", callers+"/client"))
	consecutive(t, client, url, "error", 5)
	annotate(t, ns, "outrigger.dev/traffic-policy", "permissive")
	consecutive(t, client, url, "200", 5)
}

// TestAServerMaySpeakFirst is OSM's row 43: a server that writes "y" without
// reading, on a port that is declared so, and whose client hears it within 5 s.
func TestAServerMaySpeakFirst(t *testing.T) {
	t.Parallel()
	ns := namespace(t, "on", inMesh)
	annotate(t, ns, "outrigger.dev/traffic-policy", "permissive")
	server := app{name: "server", image: "client", ports: map[string]int32{"tcp": 7000}}
	server.change = func(spec *corev1.PodSpec) {
		spec.Containers[0].Command = []string{"/bin/sh", "-c", "while true; do yes | nc -l -p 7000; done"}
		// A probe would take the one connection that nc accepts at a time.
		spec.Containers[0].ReadinessProbe = nil
	}
	server.create(t, ns)
	apply(t, `
apiVersion: v1
kind: Service
metadata: {namespace: %s, name: first}
spec:
  selector: {app: server}
  ports: [{name: own, port: 7001, targetPort: 7000, appProtocol: tcp-server-first}]
`, ns)
	client := caller("client").run(t, ns)
	ready(t, ns, "app=server")
	opens(t, client, service(ns, "first")+":7001", "y\ny\n", "--timeout=5s")
}

// A database is a real server with its real client.
type database struct {
	name   string
	port   int32
	server string   // program of the image
	client []string // the client with a question whose answer is 42, without host and port
	host   string   // flag for the host
	number string   // flag for the port
}

var databases = []database{
	{
		name: "postgresql", port: 5432, server: "/postgresql", host: "--host=%s", number: "--port=%s",
		client: []string{"/psql", "--username=e2e", "--dbname=postgres", "--tuples-only", "--command=SELECT 6*7"},
	},
	{
		// Its server speaks first.
		name: "mariadb", port: 3306, server: "/mariadb-server", host: "--host=%s", number: "--port=%s",
		client: []string{"/usr/bin/mariadb", "--no-defaults", "--user=e2e", "--connect-timeout=10", "--skip-ssl", "--execute=SELECT 6*7"},
	},
}

// TestRealDatabasesAnswerThroughTheMesh asks PostgreSQL and MariaDB with their own
// clients, on a declared port with another number and on the usual port without a
// word, where the number tells: allowed by a TCPRoute, and closed without one.
func TestRealDatabasesAnswerThroughTheMesh(t *testing.T) {
	t.Parallel()
	ns, callers := namespace(t, "servers", inMesh), namespace(t, "callers", inMesh)
	for _, db := range databases {
		server := app{name: db.name, image: "databases", ports: map[string]int32{"unsaid": db.port}}
		server.change = func(spec *corev1.PodSpec) { spec.Containers[0].Command = []string{db.server} }
		server.create(t, ns)
		apply(t, `
apiVersion: v1
kind: Service
metadata: {namespace: %[1]s, name: %[2]s-declared}
spec:
  selector: {app: %[2]s}
  ports: [{name: tcp-db, port: 7000, targetPort: %[3]d}]
`, ns, db.name, db.port)
	}
	wait := func(spec *corev1.PodSpec) {
		spec.Containers[0].Image = cluster.Image("databases")
		spec.Containers[0].Command = []string{"/bin/sh", "-c", "sleep 1000000"}
	}
	client, stranger := caller("client"), caller("stranger")
	client.change, stranger.change = wait, wait
	pods := all(t, callers, client, stranger)
	for _, db := range databases {
		ready(t, ns, "app="+db.name)
		for _, address := range db.addresses(ns) {
			db.refuses(t, pods[0], address)
		}
		allowTCP(t, ns, db.name, fmt.Sprint(db.port), callers+"/client")
		for _, address := range db.addresses(ns) {
			db.answers(t, pods[0], address)
			db.refuses(t, pods[1], address)
		}
		withdraw(t, target(ns, db.name, "TCPRoute/"+db.name, callers+"/client"))
		for _, address := range db.addresses(ns) {
			eventually(t, func(ctx context.Context) error {
				if out, err := db.ask(ctx, pods[0], address); err != nil {
					return err
				} else if strings.Contains(out, "42") {
					return fmt.Errorf("%s still answers: %s", db.name, out)
				}
				return nil
			})
		}
	}
}

func (db database) addresses(ns string) [][2]string {
	return [][2]string{{service(ns, db.name), fmt.Sprint(db.port)}, {service(ns, db.name+"-declared"), "7000"}}
}

func (db database) ask(ctx context.Context, from corev1.Pod, address [2]string) (string, error) {
	command := append(append([]string{"timeout", "15"}, db.client...), fmt.Sprintf(db.host, address[0]), fmt.Sprintf(db.number, address[1]))
	result, err := cluster.Exec(ctx, from, from.Spec.Containers[0].Name, command...)
	return result.Stdout + result.Stderr, err
}

func (db database) answers(t *testing.T, from corev1.Pod, address [2]string) {
	t.Helper()
	eventually(t, func(ctx context.Context) error {
		out, err := db.ask(ctx, from, address)
		if err == nil && !strings.Contains(out, "42") {
			err = fmt.Errorf("%s at %v says %s", db.name, address, out)
		}
		return err
	})
}

func (db database) refuses(t *testing.T, from corev1.Pod, address [2]string) {
	t.Helper()
	out, err := db.ask(t.Context(), from, address)
	if err != nil || strings.Contains(out, "42") || !strings.Contains(strings.ToLower(out), "server") {
		t.Errorf("%s at %v answers whom no policy names: %s (%v)", db.name, address, out, err)
	}
}
