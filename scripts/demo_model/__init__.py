"""The grammar behind the demo model: scenes, registers, and the chats composed from them."""
