//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/outrigger-mesh/outrigger/e2e/harness"
)

// zooPorts are what ZooKeeper's servers listen on: clients, followers, elections.
const zooPorts = "2181, 3181, 2888, 3888"

// TestZooKeeperFormsItsQuorum is OSM's row 40: three servers of a StatefulSet, which
// bind to their pod's address and know each other by stable names, may call
// themselves by a TCPRoute; the status succeeds on each within 90 s.
func TestZooKeeperFormsItsQuorum(t *testing.T) {
	t.Parallel()
	ns := namespace(t, "on", inMesh)
	zoo := app{name: "zoo", image: "zookeeper"}
	zoo.surround(t, ns)
	apply(t, `
apiVersion: v1
kind: Service
metadata: {namespace: %s, name: zoo}
spec:
  clusterIP: None
  publishNotReadyAddresses: true
  selector: {app: zoo}
  ports:
  - {name: tcp-client, port: 2181}
  - {name: tcp-follower, port: 2888}
  - {name: tcp-election, port: 3888}
`, ns)
	allowTCP(t, ns, "zoo", zooPorts, ns+"/zoo", ns+"/client")
	script := `mkdir -p /tmp/data; echo $((${POD_NAME##*-} + 1)) > /tmp/data/myid
printf '%s\n' tickTime=1000 initLimit=30 syncLimit=10 dataDir=/tmp/data clientPort=2181 4lw.commands.whitelist=srvr > /tmp/zoo.cfg
for i in 0 1 2; do echo "server.$((i + 1))=zoo-$i.zoo.` + ns + `.svc.cluster.local:2888:3888" >> /tmp/zoo.cfg; done
exec /zookeeper`
	pod := zoo.podIn(ns)
	pod.Spec.Containers[0].Command = []string{"/bin/sh", "-c", script}
	set := &appsv1.StatefulSet{}
	set.Namespace, set.Name = ns, "zoo"
	set.Spec = appsv1.StatefulSetSpec{
		ServiceName: "zoo", Replicas: new(int32(3)), PodManagementPolicy: appsv1.ParallelPodManagement,
		Selector: &metav1.LabelSelector{MatchLabels: pod.Labels},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: pod.Labels}, Spec: pod.Spec},
	}
	if err := cluster.Client.Create(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	all(t, ns, caller("client"), caller("stranger"))
	client, stranger := ready(t, ns, "app=client"), ready(t, ns, "app=stranger")
	pods := readyAll(t, ns, "app=zoo", 3)
	began := time.Now()
	roles := map[string]int{}
	for _, pod := range pods {
		err := harness.Eventually(t.Context(), 90*time.Second, func(ctx context.Context) error {
			result, err := cluster.Exec(ctx, pod, "zoo", "/zookeeper", "status")
			if err == nil && (result.Code != 0 || !strings.Contains(result.Stdout, "Mode: ")) {
				err = errors.New(result.Stdout + result.Stderr)
			}
			if err == nil {
				_, mode, _ := strings.Cut(result.Stdout, "Mode: ")
				role, _, _ := strings.Cut(mode, "\n")
				roles[role]++
			}
			return err
		})
		if err != nil {
			t.Errorf("%s: %v", pod.Name, err)
		}
	}
	t.Logf("roles %v, %.1f s after the pods were ready", roles, time.Since(began).Seconds())
	if roles["leader"] != 1 || roles["follower"] != 2 {
		t.Errorf("the roles are %v; want one leader and two followers", roles)
	}
	// Each server is called by its stable name by whom the policy names.
	for i := range pods {
		address := fmt.Sprintf("zoo-%d.%s:2181", i, service(ns, "zoo"))
		opens(t, client, address, "Mode: ", "--send", "srvr")
		closed(t, stranger, address, "--send", "srvr", "--timeout", "2s")
	}
}

// TestPodsOfAStatefulSetHaveStableNames calls each pod by its name, over HTTP and
// TCP, before and after it was replaced.
func TestPodsOfAStatefulSetHaveStableNames(t *testing.T) {
	t.Parallel()
	ns := namespace(t, "on", inMesh)
	server := named("db")
	server.surround(t, ns)
	apply(t, `
apiVersion: v1
kind: Service
metadata: {namespace: %s, name: peers}
spec:
  clusterIP: None
  selector: {app: db}
  ports: [{name: http, port: 8080}, {name: tcp, port: 9000}]
`, ns)
	pod := server.podIn(ns)
	set := &appsv1.StatefulSet{}
	set.Namespace, set.Name = ns, "db"
	set.Spec = appsv1.StatefulSetSpec{
		ServiceName: "peers", Replicas: new(int32(2)), PodManagementPolicy: appsv1.ParallelPodManagement,
		Selector: &metav1.LabelSelector{MatchLabels: pod.Labels},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: pod.Labels}, Spec: pod.Spec},
	}
	if err := cluster.Client.Create(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	client := caller("client").run(t, ns)
	allow(t, ns, "db", ns+"/client")
	allowTCP(t, ns, "db", "9000", ns+"/client")
	check := func() {
		t.Helper()
		for _, pod := range readyAll(t, ns, "app=db", 2) {
			name := pod.Name + "." + service(ns, "peers")
			for _, url := range []string{"http://" + name + ":8080/", "tcp://" + name + ":9000"} {
				load := consecutive(t, client, url, "200", 5)
				if load.Identities[pod.Name] != 5 {
					t.Errorf("%s was answered by %v", url, load.Identities)
				}
			}
		}
	}
	check()
	old := readyAll(t, ns, "app=db", 2)[0]
	if err := cluster.Client.Delete(t.Context(), &old); err != nil {
		t.Fatal(err)
	}
	eventually(t, func(ctx context.Context) error {
		pods, err := cluster.Pods(ctx, ns, "app=db")
		for _, pod := range pods {
			if pod.UID == old.UID {
				err = fmt.Errorf("%s is not replaced yet", old.Name)
			}
		}
		return err
	})
	check()
}
