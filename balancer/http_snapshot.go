package balancer

// connections counts the node's open connections: those of the balancer's first
// layer and of DialContext.
func (n *Node) connections() int {
	n.links.mu.Lock()
	total := len(n.links.open)
	n.links.mu.Unlock()
	if c := n.conn.Load(); c != nil {
		c.mu.Lock()
		total += len(c.open)
		c.mu.Unlock()
	}
	return total
}
